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

"""Converts raw camera pictures to RGB without ROS: any encoding, padding and byte order.

The replay uses this file alone. The node leaves to cv_bridge what every cv_bridge converts correctly
(ros/conversion.py), and uses this file for the rest.
"""

import re
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.scene.contrast import Contrast
from vlm_reuse_node.scene.planar import PLANAR, yuyv_of_planes

DEPTH_RANGE_M = 10.0
# Rows of one byte a pixel that are twice as long, and longer than any padding, are of two bytes a pixel.
WIDEST_PADDING = 256

# Channels, and OpenCV's code for the conversion to RGB. OpenCV names a Bayer mosaic after its second row and column.
EIGHT_BIT: dict[str, tuple[int, int | None]] = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
    'bayer_rggb8': (1, cv2.COLOR_BayerBG2RGB),
    'bayer_bggr8': (1, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg8': (1, cv2.COLOR_BayerGR2RGB),
    'bayer_grbg8': (1, cv2.COLOR_BayerGB2RGB),
    'uyvy': (2, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422': (2, cv2.COLOR_YUV2RGB_UYVY),
    'yuyv': (2, cv2.COLOR_YUV2RGB_YUYV),
    'yuv422_yuy2': (2, cv2.COLOR_YUV2RGB_YUYV),
    'yuy2': (2, cv2.COLOR_YUV2RGB_YUYV),
    'yvyu': (2, cv2.COLOR_YUV2RGB_YVYU),
}
SIXTEEN_BIT = {f'{name[:-1]}16': channels for name, (channels, _) in EIGHT_BIT.items() if name.endswith('8')}
_GENERIC = re.compile(r'(8U|16U|16S|32S|32F|64F)(?:C([134]))?')
_GENERIC_DTYPES = {
    '8U': np.uint8,
    '16U': np.uint16,
    '16S': np.int16,
    '32S': np.int32,
    '32F': np.float32,
    '64F': np.float64,
}
_COLOURS = {1: 'mono', 3: 'bgr', 4: 'bgra'}
# Which encodings have so many bytes a pixel.
_BY_BYTES = {
    1.0: ('mono8', 'bayer_rggb8'),
    1.5: ('nv12', 'nv21', 'i420'),
    2.0: ('yuyv', 'uyvy', 'mono16', '16UC1'),
    3.0: ('rgb8', 'bgr8', 'nv24'),
    4.0: ('rgba8', 'bgra8', '32FC1'),
    6.0: ('rgb16', 'bgr16'),
}


class RawImage(Protocol):
    """The fields of a `sensor_msgs/Image` that describe its pixels, from whichever library read the message.

    data: bytes, or an array of bytes.
    """

    encoding: str
    width: int
    height: int
    step: int
    is_bigendian: bool | int
    data: bytes


class PixelLayout(NamedTuple):
    """The memory layout of one pixel, and its meaning.

    meaning: an encoding with colour ('bgr8', 'mono16', ...), or 'depth'.
    """

    dtype: np.dtype
    channels: int
    meaning: str


def rgb_of_image(image: RawImage, max_pixels: int, contrast: Contrast | None = None) -> np.ndarray:
    """Convert a raw picture to (height, width, 3) uint8 RGB; a tight rgb8 picture is not copied.

    16 bit colours are scaled by 255/65535; counts in mono16, too, without the contrast that the camera was given.
    Depth becomes grey: black at 0, white at `DEPTH_RANGE_M` and beyond. Integers are millimetres and floats are metres,
    as in REP-118; NaN and negative values are black. The depth range is the same for all pictures, so an object that
    did not move keeps its grey level.
    Raises ImageError with cause 'encoding', 'size', 'step', 'truncated' or 'decode'.
    """
    return rgb_of_rows(*eight_bit_rows(image, max_pixels, contrast))


def eight_bit_rows(image: RawImage, max_pixels: int, contrast: Contrast | None = None) -> tuple[np.ndarray, str]:
    """Return a raw picture as (height, width[, channels]) uint8, and its encoding, which is a key of `EIGHT_BIT`.

    The array has no padding, but it may be a view of a buffer that has. 16 bit colours are scaled; depth becomes grey.
    Raises ImageError as `rgb_of_image` does.
    """
    if planes := PLANAR.get(image.encoding):
        check_size(image.width, image.height, max_pixels)
        data = np.frombuffer(image.data, np.uint8)
        return yuyv_of_planes(data, image.height, image.width, image.step, planes), 'yuyv'
    try:
        layout = layout_of(image.encoding)
    except ImageError as error:
        raise _unknown_encoding(image.encoding, _fitting(image)) from error
    check_size(image.width, image.height, max_pixels)
    return eight_bit(_rows(image, layout), layout.meaning, contrast)


def rgb_of_rows(rows: np.ndarray, encoding: str) -> np.ndarray:
    """Convert the result of `eight_bit_rows` to (height, width, 3) uint8 RGB."""
    channels, code = EIGHT_BIT[encoding]
    if channels == 2 and rows.shape[1] % 2:
        raise ImageError('size', f'The picture is {rows.shape[1]} pixels wide; {encoding} needs an even number.')
    rows = np.ascontiguousarray(rows)
    if code is None:
        return rows
    try:
        return cv2.cvtColor(rows, code)
    except cv2.error as error:
        raise ImageError('decode', f'OpenCV could not convert the picture from {encoding}: {error}.') from error


def layout_of(encoding: str) -> PixelLayout:
    """Look up the pixel layout of a `sensor_msgs/Image` encoding. Raises ImageError with cause 'encoding'."""
    if encoding in EIGHT_BIT:
        return PixelLayout(np.dtype(np.uint8), EIGHT_BIT[encoding][0], encoding)
    if encoding in SIXTEEN_BIT:
        return PixelLayout(np.dtype(np.uint16), SIXTEEN_BIT[encoding], encoding)
    generic = _GENERIC.fullmatch(encoding)
    if not generic:
        raise _unknown_encoding(encoding)
    dtype = np.dtype(_GENERIC_DTYPES[generic[1]])
    channels = int(generic[2] or 1)
    return PixelLayout(dtype, channels, _generic_meaning(encoding, dtype, channels))


def _generic_meaning(encoding: str, dtype: np.dtype, channels: int) -> str:
    """The meaning of an OpenCV type name: its channel order is BGR, and a single channel deeper than 8 bit is depth."""
    if dtype == np.uint8 or (dtype == np.uint16 and channels > 1):
        return f'{_COLOURS[channels]}{8 * dtype.itemsize}'
    if channels > 1:
        raise _unknown_encoding(encoding)
    return 'depth'


def _unknown_encoding(encoding: str, fitting: str = '') -> ImageError:
    known = ', '.join([*EIGHT_BIT, *SIXTEEN_BIT, *PLANAR, '8UC1', '8UC3', '8UC4', '16UC1', '16UC3', '16UC4', '32FC1'])
    expected = fitting or f'expected one of {known}.'
    return ImageError(
        'encoding',
        f"The picture's encoding is '{encoding[:40]}'; {expected} "
        'Set the camera driver to one of these, or convert with image_proc.',
    )


def _fitting(image: RawImage) -> str:
    """Say which encodings the picture's data has the size of; '' when none does."""
    bytes_a_pixel = memoryview(image.data).nbytes / max(1, image.width * image.height)
    names = _BY_BYTES.get(bytes_a_pixel, ())
    return f'its data has the size of {", ".join(names)}.' if names else ''


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an empty picture, and one with more pixels than the node accepts."""
    if width < 1 or height < 1:
        raise ImageError('size', f'The picture is {width} x {height} pixels; expected at least 1 x 1.')
    if width * height > max_pixels:
        raise ImageError(
            'size',
            f'The picture is {width} x {height} pixels; expected at most {max_pixels} pixels in '
            'all. Send smaller pictures, or raise max_image_pixels.',
        )


def _rows(image: RawImage, layout: PixelLayout) -> np.ndarray:
    """The picture's data without padding, in native byte order: (height, width[, channels])."""
    dtype, channels = layout.dtype, layout.channels
    tight = image.width * channels * dtype.itemsize
    is_doubled = tight == image.width > WIDEST_PADDING and image.step == 2 * tight
    if image.step < tight or is_doubled:
        raise ImageError(
            'step',
            f'step is {image.step} bytes; expected {"" if is_doubled else "at least "}{tight} for {image.width} pixels '
            f'of {image.encoding[:40]}; {_fitting(image) or "its data has the size of no known encoding."}',
        )
    _check_length(image, tight)
    shape = (image.height, image.width) + ((channels,) if channels > 1 else ())
    strides = (image.step, channels * dtype.itemsize) + ((dtype.itemsize,) if channels > 1 else ())
    order = dtype.newbyteorder('>' if image.is_bigendian else '<')
    return np.ndarray(shape, order, buffer=image.data, strides=strides).astype(dtype.newbyteorder('='), copy=False)


def _check_length(image: RawImage, tight: int) -> None:
    """Check that the data holds `height` rows of `step` bytes. Only the padding of the last row may be missing."""
    length = memoryview(image.data).nbytes
    least = image.step * (image.height - 1) + tight
    most = image.step * image.height
    if length < least:
        raise ImageError(
            'truncated',
            f'The picture has {length} bytes; expected {most}: {image.height} rows of {image.step} bytes.',
        )
    if length > most:
        raise ImageError(
            'step',
            f'The picture has {length} bytes; expected {most}: {image.height} rows of {image.step} bytes. '
            'The step does not match the data.',
        )


def eight_bit(pixels: np.ndarray, meaning: str, contrast: Contrast | None = None) -> tuple[np.ndarray, str]:
    """Convert pixels to uint8 and return their encoding. Depth becomes grey; 16 bit colours are scaled."""
    if contrast and (meaning == 'mono16' or (meaning == 'depth' and _are_counts(pixels, contrast))):
        return contrast.grey(pixels), 'mono8'
    if meaning == 'depth':
        return _grey_of_depth(pixels), 'mono8'
    if meaning in SIXTEEN_BIT:
        return cv2.convertScaleAbs(np.ascontiguousarray(pixels), alpha=255 / 65535), meaning.removesuffix('16') + '8'
    return pixels, meaning


def _are_counts(pixels: np.ndarray, contrast: Contrast) -> bool:
    """Whether 16 bit integers are counts of heat: as distances, all of the camera's first picture would be too far."""
    return pixels.dtype == np.uint16 and (contrast.learnt > 0 or bool(pixels.min() > 1000 * DEPTH_RANGE_M))


def _grey_of_depth(depth: np.ndarray) -> np.ndarray:
    """Convert depth to grey: (height, width) uint8, 0 at 0 m, NaN and negative values, 255 from DEPTH_RANGE_M on."""
    if np.issubdtype(depth.dtype, np.integer):
        depth = depth * np.float32(0.001)
    depth = np.nan_to_num(depth, nan=0.0, posinf=DEPTH_RANGE_M, neginf=0.0)
    return np.rint(np.clip(depth, 0.0, DEPTH_RANGE_M) * (255 / DEPTH_RANGE_M)).astype(np.uint8)
