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

"""Converts compressed pictures to RGB: JPEG, PNG, TIFF, WebP, BMP, and packed distances."""

import io

import cv2
import numpy as np
from PIL import Image as PilImage

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.scene.compressed_depth import depth_of_packed
from vlm_reuse_node.scene.contrast import Contrast
from vlm_reuse_node.scene.pixels import EIGHT_BIT, SIXTEEN_BIT, check_size, eight_bit, rgb_of_rows

_FILE_FORMATS = ('JPEG', 'PNG', 'TIFF', 'WEBP', 'BMP')

PilImage.init()


def rgb_of_file(data: bytes, format_text: str, max_pixels: int, contrast: Contrast | None = None) -> np.ndarray:
    """Convert a compressed picture (JPEG, PNG, TIFF, WebP, BMP) to (height, width, 3) uint8 RGB.

    The size is read from the file's header before decoding. Orientation tags are ignored.
    format_text: the format field of the `sensor_msgs/CompressedImage`. It is needed only where the file itself does not
    tell: for a Bayer mosaic, for distances, and for colours that were compressed in RGB order.
    contrast: of the camera, see `rgb_of_image`.
    Raises ImageError with cause 'encoding', 'size', 'truncated' or 'decode'.
    """
    if 'compressedDepth' in format_text:
        depth = depth_of_packed(data, format_text, lambda png: _checked_and_decoded(png, max_pixels), max_pixels)
        return rgb_of_rows(*eight_bit(depth, 'depth', contrast))
    pixels = _checked_and_decoded(data, max_pixels)
    return rgb_of_rows(*eight_bit(pixels, _meaning_of_file(format_text, pixels), contrast))


def _checked_and_decoded(data: bytes, max_pixels: int) -> np.ndarray:
    _check_file(data, max_pixels)
    return _decoded(data)


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
    check_size(width, height, max_pixels)
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
