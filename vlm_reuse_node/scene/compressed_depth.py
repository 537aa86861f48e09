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

"""Distances as compressed_depth_image_transport packs them: a header of 12 bytes, then PNG or RVL.

RVL: Wilson, "Fast lossless depth image compression", ISS 2017.
"""

import struct
from collections.abc import Callable

import numpy as np

from vlm_reuse_node.errors import ImageError

HEADER = struct.Struct('<Iff')  # kind, and two parameters of floats that were made integers
SIZE = struct.Struct('<II')  # columns and rows, before RVL
PNG_MAGIC = b'\x89PNG'


def depth_of_packed(
    data: bytes, format_text: str, decode_png: Callable[[bytes], np.ndarray], max_pixels: int
) -> np.ndarray:
    """Unpack to (height, width): uint16 millimetres, or float32 metres where the format says 32FC1.

    decode_png: returns the pixels of a PNG file. Raises ImageError with cause 'truncated', 'size' or 'decode'.
    """
    if len(data) <= HEADER.size:
        raise ImageError('truncated', f'The packed distances have {len(data)} bytes; expected a header of 12 and more.')
    _, a, b = HEADER.unpack_from(data)
    packed = data[HEADER.size :]
    depth = decode_png(packed) if packed.startswith(PNG_MAGIC) else _of_rvl(packed, max_pixels)
    if depth.ndim != 2 or depth.dtype != np.uint16:
        raise ImageError('decode', f'The packed distances are {depth.dtype} of {depth.ndim} axes; expected 16 bit.')
    return _metres(depth, a, b) if format_text.startswith('32FC1') else depth


def _metres(inverse: np.ndarray, a: float, b: float) -> np.ndarray:
    """Distances in metres that were stored as their inverses; 0 is none."""
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(inverse > 0, np.float32(a) / (inverse - np.float32(b)), np.nan).astype(np.float32)


def _of_rvl(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode RVL: runs of zeros and of differences between neighbours, as numbers of a few nibbles each."""
    if len(data) < SIZE.size:
        raise ImageError('truncated', f'The packed distances have {len(data)} bytes behind their header.')
    width, height = SIZE.unpack_from(data)
    if not 0 < width * height <= max_pixels:
        raise ImageError('size', f'The packed picture is {width} x {height} pixels; expected 1 to {max_pixels}.')
    numbers = _numbers(data[SIZE.size :])
    depth = np.zeros(width * height, np.int64)
    place = read = before = 0
    while place < depth.size:
        if read + 2 > numbers.size:
            raise ImageError('truncated', 'The packed distances end in the middle of the picture.')
        zeros, count = int(numbers[read]), int(numbers[read + 1])
        place, read = place + zeros, read + 2
        if not zeros + count or place + count > depth.size or read + count > numbers.size:
            raise ImageError('decode', 'The packed distances are no RVL: a run does not fit into the picture.')
        zigzag = numbers[read : read + count]
        values = before + np.cumsum((zigzag >> 1) ^ -(zigzag & 1))
        depth[place : place + count] = values
        before = int(values[-1]) if count else before
        place, read = place + count, read + count
    return depth.astype(np.uint16).reshape(height, width)


def _numbers(data: bytes) -> np.ndarray:
    """All numbers of an RVL stream, int64: three bits a nibble, lowest first; the fourth bit says that one follows.

    Nibbles are in words of 32 bits, the highest first. Zeros that fill the last word are numbers, too.
    """
    words = np.frombuffer(data[: len(data) // 4 * 4], '<u4')
    nibbles = ((words[:, None] >> np.arange(28, -1, -4, dtype=np.uint32)) & 15).reshape(-1).astype(np.int64)
    ends = np.flatnonzero(nibbles < 8)
    if not ends.size:
        return np.zeros(0, np.int64)
    nibbles = nibbles[: ends[-1] + 1]
    begins = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(nibbles.size) - np.repeat(begins, ends - begins + 1)
    return np.add.reduceat((nibbles & 7) << np.minimum(3 * places, 60), begins)
