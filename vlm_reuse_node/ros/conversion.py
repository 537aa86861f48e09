"""ROS pictures to `Frame`, and arrays back to `sensor_msgs/Image`: the only file that touches pixels in messages.

cv_bridge is the converter. ROS 2's own and PyPI's port differ in what they get wrong, so every picture reaches them as
tight, native 8 bit rows in an encoding that both know; what either of them gets wrong is put right before or beside it.
"""

import array
import io
import re
from typing import NamedTuple

import cv2
import numpy as np
from cv_bridge import CvBridge
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.scene.frame import Frame

DEPTH_RANGE_M = 10.0

_BRIDGED = {
    'rgb8': 3,
    'bgr8': 3,
    'rgba8': 4,
    'bgra8': 4,
    'mono8': 1,
    'bayer_rggb8': 1,
    'bayer_bggr8': 1,
    'bayer_gbrg8': 1,
}
_BESIDE = {
    'bayer_grbg8': (1, cv2.COLOR_BayerGB2RGB),
    'uyvy': (2, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422': (2, cv2.COLOR_YUV2RGB_UYVY),
    'yuyv': (2, cv2.COLOR_YUV2RGB_YUYV),
    'yuv422_yuy2': (2, cv2.COLOR_YUV2RGB_YUYV),
}
_WIDE = {name.removesuffix('8') + '16': channels for name, channels in _BRIDGED.items()} | {'bayer_grbg16': 1}
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
_BRIDGE = CvBridge()

PilImage.init()


class _Layout(NamedTuple):
    """How one pixel lies in memory, and what it means.

    meaning: an encoding with colour ('bgr8', 'mono16', ...), or 'depth'.
    """

    dtype: np.dtype
    channels: int
    meaning: str


def frame_from_image(message: Image, camera: str, max_pixels: int) -> Frame:
    """Turn a `sensor_msgs/Image` of any camera encoding into RGB; a tight rgb8 picture is not copied.

    16 bit colours are scaled by 255/65535. Depth becomes grey, black at 0 and white at `DEPTH_RANGE_M` and beyond
    (whole numbers are millimetres, floats metres, as in REP-118; NaN and negative are black). The range is fixed, not
    fitted to each picture, so that what did not move keeps its grey.
    Raises ImageError with cause 'encoding', 'size', 'step', 'truncated' or 'decode'.
    """
    layout = _layout(message.encoding)
    _check_size(message.width, message.height, max_pixels)
    rows = _rows(message, layout)
    as_it_is = message.encoding in _BRIDGED and len(message.data) == rows.nbytes and not message.is_bigendian
    return _frame(message.header, camera, _bridged(message) if as_it_is else _rgb(rows, layout.meaning))


def frame_from_compressed(message: CompressedImage, camera: str, max_pixels: int) -> Frame:
    """Turn a `sensor_msgs/CompressedImage` (JPEG, PNG, TIFF, WebP, BMP) into RGB; orientation tags are ignored.

    The size is read from the file's header before anything is decoded. `format` is only needed where the file cannot
    say what it means: a bayer mosaic, depth in millimetres, or colours that were compressed in RGB order.
    Raises ImageError with cause 'encoding', 'size', 'truncated' or 'decode'.
    """
    if 'compressedDepth' in message.format:
        raise ImageError(
            'encoding',
            f"The picture's format is '{message.format[:40]}'; expected JPEG or PNG. "
            'Subscribe to the raw depth topic instead.',
        )
    data = bytes(message.data)
    _check_file(data, max_pixels)
    pixels = _decoded(data)
    return _frame(message.header, camera, _rgb(pixels, _meaning_of_file(message.format, pixels)))


def image_message(rgb: np.ndarray, header: Header, encoding: str = 'rgb8') -> Image:
    """Build a `sensor_msgs/Image` from (height, width[, channels]) uint8; the header is used as it is."""
    message = Image(header=header, height=rgb.shape[0], width=rgb.shape[1], encoding=encoding)
    message.step = rgb.nbytes // rgb.shape[0]
    message.data = array.array('B', rgb.tobytes())
    return message


def stamp_ns(header: Header) -> int:
    """Nanoseconds of a header's stamp."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def _layout(encoding: str) -> _Layout:
    """What a `sensor_msgs/Image` encoding's pixels are."""
    if encoding in _BRIDGED:
        return _Layout(np.dtype(np.uint8), _BRIDGED[encoding], encoding)
    if encoding in _BESIDE:
        return _Layout(np.dtype(np.uint8), _BESIDE[encoding][0], encoding)
    if encoding in _WIDE:
        return _Layout(np.dtype(np.uint16), _WIDE[encoding], encoding)
    generic = _GENERIC.fullmatch(encoding)
    if not generic:
        raise _unknown_encoding(encoding)
    dtype, channels = np.dtype(_GENERIC_DTYPES[generic[1]]), int(generic[2] or 1)
    return _Layout(dtype, channels, _generic_meaning(encoding, dtype, channels))


def _generic_meaning(encoding: str, dtype: np.dtype, channels: int) -> str:
    """OpenCV's names for bare arrays: its channel order is BGR, and one channel deeper than 8 bit is depth."""
    if dtype == np.uint8 or (dtype == np.uint16 and channels > 1):
        return f'{_COLOURS[channels]}{8 * dtype.itemsize}'
    if channels > 1:
        raise _unknown_encoding(encoding)
    return 'depth'


def _unknown_encoding(encoding: str) -> ImageError:
    known = ', '.join([*_BRIDGED, *_BESIDE, *_WIDE, '8UC1', '8UC3', '8UC4', '16UC1', '16UC3', '16UC4', '32FC1'])
    return ImageError(
        'encoding',
        f"The picture's encoding is '{encoding[:40]}'; expected one of {known}. "
        'Set the camera driver to one of these, or convert with image_proc.',
    )


def _check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse what is no picture, or more than the node may take."""
    if width < 1 or height < 1:
        raise ImageError('size', f'The picture is {width} x {height} pixels; expected at least 1 x 1.')
    if width * height > max_pixels:
        raise ImageError(
            'size',
            f'The picture is {width} x {height} pixels; expected at most {max_pixels} pixels in '
            'all. Send smaller pictures, or raise max_image_pixels.',
        )


def _rows(message: Image, layout: _Layout) -> np.ndarray:
    """(height, width[, channels]) view of the message's data without its padding, in the machine's byte order."""
    dtype, channels = layout.dtype, layout.channels
    tight = message.width * channels * dtype.itemsize
    if message.step < tight:
        raise ImageError(
            'step',
            f'step is {message.step} bytes; expected at least {tight} for {message.width} pixels '
            f'of {message.encoding}.',
        )
    _check_length(message, tight)
    shape = (message.height, message.width) + ((channels,) if channels > 1 else ())
    strides = (message.step, channels * dtype.itemsize) + ((dtype.itemsize,) if channels > 1 else ())
    order = dtype.newbyteorder('>' if message.is_bigendian else '<')
    # NumPy's own byte swap: cv_bridge's fails (PyPI) or is not asked (ROS 2, where 8 bit data is marked big-endian).
    return np.ndarray(shape, order, buffer=message.data, strides=strides).astype(dtype.newbyteorder('='), copy=False)


def _check_length(message: Image, tight: int) -> None:
    """The data must be height rows of step bytes; only the last row's padding may be missing."""
    least, most = message.step * (message.height - 1) + tight, message.step * message.height
    if len(message.data) < least:
        raise ImageError(
            'truncated',
            f'The picture has {len(message.data)} bytes; expected {most}: {message.height} '
            f'rows of {message.step} bytes.',
        )
    if len(message.data) > most:
        raise ImageError(
            'step',
            f'The picture has {len(message.data)} bytes; expected {most}: {message.height} rows '
            f'of {message.step} bytes. Its step does not fit its data.',
        )


def _rgb(pixels: np.ndarray, meaning: str) -> np.ndarray:
    """(height, width, 3) uint8 in the order red, green, blue."""
    pixels = np.ascontiguousarray(pixels)
    if meaning == 'depth':
        pixels, meaning = _grey_of_depth(pixels), 'mono8'
    if meaning in _WIDE:
        pixels, meaning = cv2.convertScaleAbs(pixels, alpha=255 / 65535), meaning.removesuffix('16') + '8'
    if meaning in _BRIDGED:
        return _bridged(image_message(pixels, Header(), meaning))
    channels, code = _BESIDE[meaning]
    if channels == 2 and pixels.shape[1] % 2:
        raise ImageError('size', f'The picture is {pixels.shape[1]} pixels wide; {meaning} needs an even number.')
    return cv2.cvtColor(pixels, code)


def _grey_of_depth(depth: np.ndarray) -> np.ndarray:
    """(height, width) uint8: 0 at 0 m, 255 at DEPTH_RANGE_M and beyond; NaN and negative are 0."""
    if np.issubdtype(depth.dtype, np.integer):
        depth = depth * np.float32(0.001)
    depth = np.nan_to_num(depth, nan=0.0, posinf=DEPTH_RANGE_M, neginf=0.0)
    return np.rint(np.clip(depth, 0.0, DEPTH_RANGE_M) * (255 / DEPTH_RANGE_M)).astype(np.uint8)


def _bridged(message: Image) -> np.ndarray:
    """cv_bridge's conversion; whatever it raises is named."""
    try:
        return _BRIDGE.imgmsg_to_cv2(message, 'rgb8')
    except (cv2.error, TypeError, ValueError, KeyError, RuntimeError) as err:
        raise ImageError('decode', f'cv_bridge could not convert the picture from {message.encoding}: {err}.') from err


def _check_file(data: bytes, max_pixels: int) -> None:
    """Read the size from the file's header, so that a small file cannot unpack to a huge picture."""
    try:
        with PilImage.open(io.BytesIO(data), formats=_FILE_FORMATS) as file:
            width, height = file.size
    except PilImage.DecompressionBombError as err:
        raise ImageError('size', f'The compressed picture is too large: {err}.') from err
    except Exception as err:  # Pillow's plug-ins raise nearly anything on a broken header
        raise ImageError(
            'decode', f'The {len(data)} bytes are no compressed picture; expected JPEG, PNG, TIFF, WebP or BMP.'
        ) from err
    _check_size(width, height, max_pixels)
    # Some JPEG decoders fill the missing rest with grey and say nothing.
    if data.startswith(b'\xff\xd8') and data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda'):
        raise ImageError('truncated', f'The JPEG picture ends after {len(data)} bytes without its end marker.')


def _decoded(data: bytes) -> np.ndarray:
    """The file's pixels as OpenCV orders them (BGR), at their own depth."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as err:
        raise ImageError('decode', f'The compressed picture cannot be decoded: {err}.') from err
    if pixels is None:
        raise ImageError(
            'decode', f'The compressed picture of {len(data)} bytes cannot be decoded: it is truncated or damaged.'
        )
    return pixels


def _meaning_of_file(format_text: str, pixels: np.ndarray) -> str:
    """What decoded pixels mean; `format_text` is '<encoding>; <codec> compressed <order>' or only the codec."""
    if pixels.ndim == 2:
        return _meaning_of_grey(format_text.partition(';')[0].strip(), pixels.dtype)
    order = 'rgb' if 'compressed rgb' in format_text else 'bgr'
    meaning = f'{order}{"a" if pixels.shape[2] == 4 else ""}{8 * pixels.dtype.itemsize}'
    if meaning not in _BRIDGED and meaning not in _WIDE:
        raise ImageError(
            'encoding',
            f'The compressed picture has {pixels.shape[2]} channels of {pixels.dtype}; expected 8 or 16 bit colours.',
        )
    return meaning


def _meaning_of_grey(original: str, dtype: np.dtype) -> str:
    """One channel: grey up to 8 bit; deeper it is depth unless the message says what it was before compression."""
    for name in ('bayer_rggb', 'bayer_bggr', 'bayer_gbrg', 'bayer_grbg', 'mono'):
        if original.startswith(name) and dtype in (np.uint8, np.uint16):
            return f'{name}{8 * dtype.itemsize}'
    return 'mono8' if dtype == np.uint8 else 'depth'


def _frame(header: Header, camera: str, rgb: np.ndarray) -> Frame:
    return Frame(rgb, stamp_ns(header), header.frame_id, camera)
