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

"""Whatever a message says: a right picture or an `ImageError`, never another exception."""

import array

import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is missing: pip install hypothesis')
pytest.importorskip('sensor_msgs', reason='sensor_msgs is missing: install ROS 2 (make setup)')
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.ros import conversion as ros_convert
from vlm_reuse_node.scene import pixels
from vlm_reuse_node.scene.planar import PLANAR

ENCODINGS = st.sampled_from(
    [
        *pixels.EIGHT_BIT,
        *pixels.SIXTEEN_BIT,
        *PLANAR,
        '8UC1',
        '8UC3',
        '8UC4',
        '16UC1',
        '16SC1',
        '32SC1',
        '32FC1',
        '64FC1',
        '32FC3',
        'p010',
    ]
)
SMALL = st.integers(0, 20)


def checked(convert, message):
    """A usable picture, or None for a refusal in a sentence."""
    try:
        frame = convert(message, 'front', 10_000)
    except ImageError as refused:
        assert refused.cause in ('encoding', 'size', 'step', 'truncated', 'decode') and str(refused).endswith('.')
        return None
    assert frame.rgb.dtype == np.uint8 and frame.rgb.shape[2:] == (3,) and frame.rgb.size > 0
    return frame.rgb


@given(ENCODINGS | st.text(max_size=8), SMALL, SMALL, st.integers(0, 200), st.booleans(), st.binary(max_size=3000))
def test_any_image_message(encoding, width, height, step, big_endian, data):
    message = Image(
        encoding=encoding, width=width, height=height, step=step, is_bigendian=big_endian, data=array.array('B', data)
    )
    rgb = checked(ros_convert.frame_from_image, message)
    assert rgb is None or rgb.shape == (height, width, 3)
    try:
        without_bridge = pixels.rgb_of_image(message, 10_000)
    except ImageError:
        without_bridge = None
    assert (rgb is None) == (without_bridge is None)
    assert rgb is None or np.array_equal(rgb, without_bridge)


@given(ENCODINGS, st.integers(2, 20), st.integers(1, 20), st.integers(0, 9), st.booleans(), st.integers(0, 2**32 - 1))
def test_padding_never_shows(encoding, width, height, padding, big_endian, seed):
    """The same rows with and without padding are the same picture."""
    try:
        layout = pixels.layout_of(encoding)
    except ImageError:
        return
    row_bytes = width * layout.channels * layout.dtype.itemsize
    rows = np.random.default_rng(seed).integers(0, 256, (height, row_bytes), np.uint8)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xFF)
    tight, wide = (
        checked(ros_convert.frame_from_image, ros_message(encoding, width, big_endian, data)) for data in (rows, padded)
    )
    assert (tight is None) == (wide is None)
    assert tight is None or np.array_equal(tight, wide)


def ros_message(encoding, width, big_endian, rows):
    return Image(
        encoding=encoding,
        width=width,
        height=rows.shape[0],
        step=rows.shape[1],
        is_bigendian=big_endian,
        data=array.array('B', rows.tobytes()),
    )


STARTS = st.sampled_from([b'', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'BM'])


@given(st.text(max_size=20), STARTS, st.binary(max_size=300))
def test_any_compressed_message(format_text, start, data):
    checked(ros_convert.frame_from_compressed, CompressedImage(format=format_text, data=array.array('B', start + data)))


@given(
    st.sampled_from(['16UC1; compressedDepth png', '; compressedDepth', '32FC1; compressedDepth rvl']),
    st.binary(max_size=300),
)
def test_any_packed_depth(format_text, data):
    checked(ros_convert.frame_from_compressed, CompressedImage(format=format_text, data=array.array('B', data)))


@given(SMALL, SMALL, st.binary(max_size=300))
def test_any_rvl(width, height, data):
    head = bytes(12) + width.to_bytes(4, 'little') + height.to_bytes(4, 'little')
    message = CompressedImage(format='16UC1; compressedDepth rvl', data=array.array('B', head + data))
    checked(ros_convert.frame_from_compressed, message)
