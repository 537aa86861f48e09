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

"""Converts camera messages to RGB without ROS: any encoding, padding and byte order, and compressed files.

The replay uses this file alone. The node leaves to cv_bridge what every cv_bridge converts correctly
(ros/conversion.py), and uses this file for the rest.
"""

import io
import re
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from PIL import Image as PilImage

from vlm_reuse_node.errors import ImageError

DEPTH_RANGE_M = 10.0

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
_FILE_FORMATS = ('JPEG', 'PNG', 'TIFF', 'WEBP', 'BMP')

PilImage.init()


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


def rgb_of_image(image: RawImage, max_pixels: int) -> np.ndarray:
    """Convert a raw picture to (height, width, 3) uint8 RGB; a tight rgb8 picture is not copied.

    16 bit colours are scaled by 255/65535. Depth becomes grey: black at 0, white at `DEPTH_RANGE_M` and beyond.
    Integers are millimetres and floats are metres, as in REP-118; NaN and negative values are black. The depth range is
    the same for all pictures, so an object that did not move keeps its grey level.
    Raises ImageError with cause 'encoding', 'size', 'step', 'truncated' or 'decode'.
    """
    rows, encoding = eight_bit_rows(image, max_pixels)
    return rgb_of_rows(rows, encoding)


def rgb_of_file(data: bytes, format_text: str, max_pixels: int) -> np.ndarray:
    """Convert a compressed picture (JPEG, PNG, TIFF, WebP, BMP) to (height, width, 3) uint8 RGB.

    The size is read from the file's header before decoding. Orientation tags are ignored.
    format_text: the format field of the `sensor_msgs/CompressedImage`. It is needed only where the file itself does not
    tell: for a Bayer mosaic, for depth in millimetres, and for colours that were compressed in RGB order.
    Raises ImageError with cause 'encoding', 'size', 'truncated' or 'decode'.
    """
    if 'compressedDepth' in format_text:
        raise ImageError(
            'encoding',
            f"The picture's format is '{format_text[:40]}'; expected JPEG or PNG. "
            'Subscribe to the raw depth topic instead.',
        )
    _check_file(data, max_pixels)
    pixels = _decoded(data)
    rows, encoding = _eight_bit(pixels, _meaning_of_file(format_text, pixels))
    return rgb_of_rows(rows, encoding)


def eight_bit_rows(image: RawImage, max_pixels: int) -> tuple[np.ndarray, str]:
    """Return a raw picture as (height, width[, channels]) uint8, and its encoding, which is a key of `EIGHT_BIT`.

    The array has no padding, but it may be a view of a buffer that has. 16 bit colours are scaled; depth becomes grey.
    Raises ImageError as `rgb_of_image` does.
    """
    layout = layout_of(image.encoding)
    _check_size(image.width, image.height, max_pixels)
    return _eight_bit(_rows(image, layout), layout.meaning)


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


def _unknown_encoding(encoding: str) -> ImageError:
    known = ', '.join([*EIGHT_BIT, *SIXTEEN_BIT, '8UC1', '8UC3', '8UC4', '16UC1', '16UC3', '16UC4', '32FC1'])
    return ImageError(
        'encoding',
        f"The picture's encoding is '{encoding[:40]}'; expected one of {known}. "
        'Set the camera driver to one of these, or convert with image_proc.',
    )


def _check_size(width: int, height: int, max_pixels: int) -> None:
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
    if image.step < tight:
        raise ImageError(
            'step',
            f'step is {image.step} bytes; expected at least {tight} for {image.width} pixels of {image.encoding}.',
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


def _eight_bit(pixels: np.ndarray, meaning: str) -> tuple[np.ndarray, str]:
    """Convert pixels to uint8 and return their encoding. Depth becomes grey; 16 bit colours are scaled."""
    if meaning == 'depth':
        return _grey_of_depth(pixels), 'mono8'
    if meaning in SIXTEEN_BIT:
        return cv2.convertScaleAbs(np.ascontiguousarray(pixels), alpha=255 / 65535), meaning.removesuffix('16') + '8'
    return pixels, meaning


def _grey_of_depth(depth: np.ndarray) -> np.ndarray:
    """Convert depth to grey: (height, width) uint8, 0 at 0 m, NaN and negative values, 255 from DEPTH_RANGE_M on."""
    if np.issubdtype(depth.dtype, np.integer):
        depth = depth * np.float32(0.001)
    depth = np.nan_to_num(depth, nan=0.0, posinf=DEPTH_RANGE_M, neginf=0.0)
    return np.rint(np.clip(depth, 0.0, DEPTH_RANGE_M) * (255 / DEPTH_RANGE_M)).astype(np.uint8)


def _check_file(data: bytes, max_pixels: int) -> None:
    """Read the size from the file's header, so that a small file cannot unpack to a huge picture."""
    try:
        with PilImage.open(io.BytesIO(data), formats=_FILE_FORMATS) as file:
            width, height = file.size
    except PilImage.DecompressionBombError as error:
        raise ImageError('size', f'The compressed picture is too large: {error}.') from error
    except Exception as error:  # Pillow's plug-ins raise almost any exception on a broken header
        raise ImageError(
            'decode',
            f'The {len(data)} bytes are not a compressed picture; expected JPEG, PNG, TIFF, WebP or BMP.',
        ) from error
    _check_size(width, height, max_pixels)
    # Some JPEG decoders silently fill missing pixels with grey.
    if data.startswith(b'\xff\xd8') and data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda'):
        raise ImageError('truncated', f'The JPEG picture ends after {len(data)} bytes without its end marker.')


def _decoded(data: bytes) -> np.ndarray:
    """Decode the file in OpenCV's channel order (BGR), at its own bit depth."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError('decode', f'The compressed picture cannot be decoded: {error}.') from error
    if pixels is None:
        raise ImageError(
            'decode', f'The compressed picture of {len(data)} bytes cannot be decoded: it is truncated or damaged.'
        )
    return pixels


def _meaning_of_file(format_text: str, pixels: np.ndarray) -> str:
    """The meaning of decoded pixels. `format_text` is '<encoding>; <codec> compressed <order>', or the codec alone."""
    if pixels.ndim == 2:
        return _meaning_of_grey(format_text.partition(';')[0].strip(), pixels.dtype)
    order = 'rgb' if 'compressed rgb' in format_text else 'bgr'
    meaning = f'{order}{"a" if pixels.shape[2] == 4 else ""}{8 * pixels.dtype.itemsize}'
    if meaning not in EIGHT_BIT and meaning not in SIXTEEN_BIT:
        raise ImageError(
            'encoding',
            f'The compressed picture has {pixels.shape[2]} channels of {pixels.dtype}; expected 8 or 16 bit colours.',
        )
    return meaning


def _meaning_of_grey(original: str, dtype: np.dtype) -> str:
    """The meaning of one channel. 8 bit is grey; more is depth, unless the message names another original encoding."""
    for name in ('bayer_rggb', 'bayer_bggr', 'bayer_gbrg', 'bayer_grbg', 'mono'):
        if original.startswith(name) and dtype in (np.uint8, np.uint16):
            return f'{name}{8 * dtype.itemsize}'
    return 'mono8' if dtype == np.uint8 else 'depth'
