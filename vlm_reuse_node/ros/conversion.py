# Copyright 2026 vlm_reuse_node maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Converts ROS images to `Frame`, and arrays to `sensor_msgs/Image`.

cv_bridge is the converter. ROS 2's own cv_bridge and the port on PyPI convert different images wrongly. So they get
every image as 8 bit rows without padding, in an encoding that both convert correctly. `scene/pixels.py` does the rest.
"""

import array
from typing import Any

import cv2
import numpy as np
from cv_bridge import CvBridge
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.scene.contrast import Contrast
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.picture_file import rgb_of_file
from vlm_reuse_node.scene.pixels import eight_bit_rows, rgb_of_rows
from vlm_reuse_node.scene.video_decoder import KEY_FLAG, VideoPacket

BRIDGED = ('rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'bayer_rggb8', 'bayer_bggr8', 'bayer_gbrg8')
_BRIDGE = CvBridge()


def frame_from_image(message: Image, camera: str, max_pixels: int, contrast: Contrast | None = None) -> Frame:
    """Convert a `sensor_msgs/Image` to a frame with the pixels of `rgb_of_image`. A tight rgb8 image is not copied.

    contrast: of the camera.
    Raises ImageError as `rgb_of_image` does.
    """
    rows, encoding = eight_bit_rows(message, max_pixels, contrast)
    if encoding not in BRIDGED:
        rgb = rgb_of_rows(rows, encoding)
    elif encoding == message.encoding and rows.nbytes == len(message.data) and not message.is_bigendian:
        rgb = _bridged(message)
    else:
        rgb = _bridged(image_message(rows, Header(), encoding))
    return Frame(rgb, stamp_ns(message.header), message.header.frame_id, camera)


def frame_from_compressed(
    message: CompressedImage, camera: str, max_pixels: int, contrast: Contrast | None = None
) -> Frame:
    """Convert a `sensor_msgs/CompressedImage` to a frame. Raises ImageError as `rgb_of_file` does."""
    rgb = rgb_of_file(bytes(message.data), message.format, max_pixels, contrast)
    return Frame(rgb, stamp_ns(message.header), message.header.frame_id, camera)


def packet_of_ffmpeg(message: Any) -> VideoPacket:
    """Convert an `ffmpeg_image_transport_msgs/FFMPEGPacket`."""
    return VideoPacket(
        bytes(message.data),
        message.encoding,
        stamp_ns(message.header),
        message.header.frame_id,
        pts=message.pts,
        is_key=bool(message.flags & KEY_FLAG),
    )


def image_message(pixels: np.ndarray, header: Header, encoding: str = 'rgb8') -> Image:
    """Build a `sensor_msgs/Image` from (height, width[, channels]) uint8 pixels and a header."""
    message = Image(header=header, height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
    message.step = pixels.nbytes // pixels.shape[0]
    message.data = array.array('B', pixels.tobytes())
    return message


def stamp_ns(header: Header) -> int:
    """Nanoseconds of a header's stamp."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def _bridged(message: Image) -> np.ndarray:
    """Convert with cv_bridge. Its errors become ImageError."""
    try:
        return _BRIDGE.imgmsg_to_cv2(message, 'rgb8')
    except (cv2.error, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ImageError(
            'decode', f'cv_bridge could not convert the picture from {message.encoding}: {error}.{_opencv_remedy()}'
        ) from error


def _opencv_remedy() -> str:
    """A sentence that names the cause when it is the usual one: OpenCV 5 numbers its types anew, cv_bridge does not."""
    if int(cv2.__version__.split('.')[0]) < 5:
        return ''
    return (
        f' cv_bridge needs OpenCV 4, and this is OpenCV {cv2.__version__} ({cv2.__file__}): remove it '
        "(pip uninstall opencv-python opencv-python-headless), or install 'opencv-python-headless<5'."
    )
