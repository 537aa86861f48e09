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

"""Pictures in messages: every encoding, padding, byte order and damage ends in the right `Frame` or a named error."""

import array
import struct
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip('sensor_msgs', reason='sensor_msgs is missing: install ROS 2 (make setup)')
from builtin_interfaces.msg import Time
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.ros import conversion as ros_convert
from vlm_reuse_node.scene.pixels import EIGHT_BIT, SIXTEEN_BIT, layout_of, rgb_of_image
from vlm_reuse_node.scene.planar import PLANAR

MAX_PIXELS = 1_000_000
HEADER = Header(stamp=Time(sec=12, nanosec=34), frame_id='lens')
MOSAICS = {'rggb': 'RGGB', 'bggr': 'BGGR', 'gbrg': 'GBRG', 'grbg': 'GRBG'}


def picture(height=24, width=32, channels=3, dtype=np.uint8, seed=0):
    """Noise over the whole range of dtype."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def message_of(pixels, encoding, padding=0, big_endian=False, mark=None):
    """The message a driver would send: rows padded with noise, numbers in the byte order asked for."""
    ordered = pixels.astype(pixels.dtype.newbyteorder('>' if big_endian else '<'))
    rows = np.frombuffer(ordered.tobytes(), np.uint8).reshape(pixels.shape[0], -1)
    noise = np.full((pixels.shape[0], padding), 0xA5, np.uint8)
    data = np.hstack([rows, noise]).tobytes()
    return Image(
        header=HEADER,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=big_endian if mark is None else mark,
        step=rows.shape[1] + padding,
        data=array.array('B', data),
    )


def rgb_of(message):
    return ros_convert.frame_from_image(message, 'front', MAX_PIXELS).rgb


def cause_of(message, max_pixels=MAX_PIXELS):
    with pytest.raises(ImageError) as caught:
        if isinstance(message, Image):
            ros_convert.frame_from_image(message, 'front', max_pixels)
        else:
            ros_convert.frame_from_compressed(message, 'front', max_pixels)
    assert str(caught.value).endswith('.')
    return caught.value.cause


def colours(encoding, pixels):
    """RGB of a colour encoding by NumPy alone."""
    name = encoding.rstrip('0123456789')
    if name == 'mono':
        return np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels[:, :, [name.index(colour) for colour in 'rgb']]


def eight_bit(pixels):
    return np.rint(pixels * (255 / 65535)).astype(np.uint8)


COLOURS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
WIDE = {'rgb16': 3, 'bgr16': 3, 'rgba16': 4, 'bgra16': 4, 'mono16': 1}


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize('padding', [0, 1, 3, 64])
@pytest.mark.parametrize('encoding', COLOURS)
def test_eight_bit_colours_are_exact(encoding, padding, big_endian):
    pixels = picture(channels=COLOURS[encoding])
    assert np.array_equal(rgb_of(message_of(pixels, encoding, padding, big_endian)), colours(encoding, pixels))


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize('padding', [0, 1, 2, 64])
@pytest.mark.parametrize('encoding', WIDE)
def test_sixteen_bit_colours_are_scaled(encoding, padding, big_endian):
    pixels = picture(channels=WIDE[encoding], dtype=np.uint16)
    expected = colours(encoding, eight_bit(pixels))
    assert np.array_equal(rgb_of(message_of(pixels, encoding, padding, big_endian)), expected)


@pytest.mark.parametrize(
    'generic, same_as',
    [('8UC1', 'mono8'), ('8UC3', 'bgr8'), ('8UC4', 'bgra8'), ('16UC3', 'bgr16'), ('16UC4', 'bgra16')],
)
def test_bare_arrays_are_read_in_opencv_order(generic, same_as):
    pixels = picture(channels=(COLOURS | WIDE)[same_as], dtype=np.uint16 if '16' in same_as else np.uint8)
    assert np.array_equal(rgb_of(message_of(pixels, generic)), rgb_of(message_of(pixels, same_as)))


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('mosaic', MOSAICS)
def test_bayer_mosaics_give_back_flat_colours(mosaic, padding, bits):
    """A flat colour seen through any mosaic is that colour again: wrong phases would swap channels."""
    colour = {'R': 200, 'G': 120, 'B': 40}
    tile = np.array([colour[name] for name in MOSAICS[mosaic]], np.uint8).reshape(2, 2)
    pixels = np.tile(tile, (12, 16))
    if bits == 16:
        pixels = pixels.astype(np.uint16) * 257
    rgb = rgb_of(message_of(pixels, f'bayer_{mosaic}{bits}', padding, big_endian=bits == 16))
    assert np.array_equal(rgb, np.broadcast_to(np.array([200, 120, 40], np.uint8), (24, 32, 3)))


@pytest.mark.parametrize('encoding, luma', [('uyvy', 1), ('yuv422', 1), ('yuyv', 0), ('yuv422_yuy2', 0)])
@pytest.mark.parametrize('padding', [0, 6])
def test_yuv422_gives_back_flat_colours(encoding, luma, padding):
    y, u, v = 81, 90, 240  # BT.601 red
    pixels = np.empty((24, 32, 2), np.uint8)
    pixels[:, :, luma] = y
    pixels[:, 0::2, 1 - luma], pixels[:, 1::2, 1 - luma] = u, v
    rgb = rgb_of(message_of(pixels, encoding, padding)).astype(int)
    assert np.abs(rgb - [255, 0, 0]).max() <= 2


def planes(encoding, y, u, v, padding=0):
    """A planar picture's bytes. y: (height, width); u, v: with one value for each pixel."""
    layout = PLANAR[encoding]
    u, v = u[:: layout.rows, :: layout.columns], v[:: layout.rows, :: layout.columns]
    u, v = (v, u) if layout.has_v_first else (u, v)
    colours = [np.stack([u, v], axis=2).reshape(u.shape[0], -1)] if layout.is_interleaved else [u, v]
    data = b''
    for plane in (y, *colours):
        room = padding * plane.shape[1] // y.shape[1]
        data += np.pad(plane, ((0, 0), (0, room)), constant_values=0xA5).tobytes()
    return Image(
        header=HEADER,
        height=y.shape[0],
        width=y.shape[1],
        encoding=encoding,
        step=y.shape[1] + padding,
        data=array.array('B', data),
    )


@pytest.mark.parametrize('padding', [0, 32])
@pytest.mark.parametrize('encoding', PLANAR)
def test_planar_pictures_give_back_flat_colours(encoding, padding):
    y, u, v = (np.full((24, 32), level, np.uint8) for level in (81, 90, 240))  # BT.601 red
    assert np.abs(rgb_of(planes(encoding, y, u, v, padding)).astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize('padding', [0, 32])
@pytest.mark.parametrize(
    'encoding, code',
    [
        ('nv12', cv2.COLOR_YUV2RGB_NV12),
        ('nv21', cv2.COLOR_YUV2RGB_NV21),
        ('i420', cv2.COLOR_YUV2RGB_I420),
        ('yv12', cv2.COLOR_YUV2RGB_YV12),
    ],
)
def test_planar_pictures_are_as_opencv_converts_them(encoding, code, padding):
    y, u, v = (picture(channels=1, seed=seed) for seed in range(3))
    tight = np.frombuffer(planes(encoding, y, u, v).data, np.uint8).reshape(36, 32)
    rgb = rgb_of(planes(encoding, y, u, v, padding))
    assert np.abs(rgb.astype(int) - cv2.cvtColor(tight, code)).max() <= 1


@pytest.mark.parametrize('encoding', PLANAR)
def test_a_planar_picture_of_the_wrong_size_is_refused(encoding):
    grey = picture(channels=1)
    message = planes(encoding, grey, grey, grey)
    message.data = message.data[:-1]
    assert cause_of(message) == 'truncated'
    message.step = 31
    assert cause_of(message) == 'step'
    assert cause_of(planes(encoding, grey[:, :31], grey, grey)) == 'size'


@pytest.mark.parametrize(
    'encoding, channels, fitting',
    [('p010', 2, 'yuyv'), ('jpeg', 3, 'rgb8'), ('nv16', 1, 'mono8'), ('rgb8', 2, 'yuyv'), ('mono8', 2, 'yuyv')],
)
def test_a_name_that_does_not_fit_its_data_gets_those_that_do(encoding, channels, fitting):
    message = message_of(picture(width=512, channels=channels), encoding)
    with pytest.raises(ImageError, match=f'has the size of .*{fitting}'):
        rgb_of(message)


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize(
    'encoding, dtype, unit',
    [
        ('16UC1', np.uint16, 1000),
        ('16SC1', np.int16, 1000),
        ('32SC1', np.int32, 1000),
        ('32FC1', np.float32, 1),
        ('64FC1', np.float64, 1),
        ('16U', np.uint16, 1000),
    ],
)
def test_depth_is_grey_over_a_fixed_range(encoding, dtype, unit, big_endian):
    metres = np.linspace(0, 12, 24 * 32).reshape(24, 32)
    depth = (metres * unit).astype(dtype)
    rgb = rgb_of(message_of(depth, encoding, padding=8, big_endian=big_endian))
    expected = np.clip(depth / unit * 25.5, 0, 255)
    assert np.abs(rgb - expected[:, :, None]).max() <= 0.51
    assert rgb[0, 0, 0] == 0 and rgb[-1, -1, 0] == 255


def test_unmeasured_depth_is_black_and_far_depth_white():
    depth = np.array([[np.nan, -np.inf, -1.0, np.inf, 1e30, 5.0]], np.float32)
    assert rgb_of(message_of(depth, '32FC1'))[0, :, 0].tolist() == [0, 0, 0, 255, 255, 128]


def test_one_changed_depth_leaves_every_other_grey_alone():
    depth = np.full((4, 4), 2.0, np.float32)
    before = rgb_of(message_of(depth, '32FC1'))
    depth[0, 0] = 9.0
    assert np.array_equal(rgb_of(message_of(depth, '32FC1'))[1:], before[1:])


@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize('encoding', [*EIGHT_BIT, *SIXTEEN_BIT, '8UC1', '8UC3', '8UC4', '16UC1', '16UC3', '16UC4'])
def test_pixels_are_the_same_with_and_without_cv_bridge(encoding, big_endian, padding):
    """A recording is read without cv_bridge, and gives the pictures that the node saw."""
    layout = layout_of(encoding)
    message = message_of(picture(channels=layout.channels, dtype=layout.dtype), encoding, padding, big_endian)
    assert np.array_equal(rgb_of_image(message, MAX_PIXELS), rgb_of(message))


def test_the_frame_carries_the_source_header():
    frame = ros_convert.frame_from_image(message_of(picture(), 'rgb8'), 'front', MAX_PIXELS)
    assert (frame.stamp_ns, frame.frame_id, frame.camera) == (12_000_000_034, 'lens', 'front')
    assert frame.size == (24, 32) and frame.rgb.dtype == np.uint8 and frame.rgb.flags.c_contiguous


def test_a_tight_rgb_picture_is_not_copied_before_cv_bridge(monkeypatch):
    given = []
    monkeypatch.setattr(ros_convert._BRIDGE, 'imgmsg_to_cv2', lambda message, _: given.append(message) or picture())
    message = message_of(picture(), 'rgb8')
    rgb_of(message)
    assert given[0] is message


@pytest.mark.parametrize(
    'encoding, dtype',
    [*((name, np.uint8) for name in COLOURS), *((name, np.uint16) for name in WIDE), ('16UC1', np.uint16)],
)
def test_cv_bridge_is_only_given_what_every_cv_bridge_gets_right(monkeypatch, encoding, dtype):
    """Tight 8 bit rows, little-endian, in an encoding of the table's first row: so any cv_bridge gives the same."""
    given, real = [], ros_convert._BRIDGE.imgmsg_to_cv2
    monkeypatch.setattr(
        ros_convert._BRIDGE, 'imgmsg_to_cv2', lambda message, to: given.append(message) or real(message, to)
    )
    rgb_of(message_of(picture(channels=(COLOURS | WIDE).get(encoding, 1), dtype=dtype), encoding, 3, big_endian=True))
    for message in given:
        assert message.encoding in COLOURS and not message.is_bigendian
        assert message.step == message.width * COLOURS[message.encoding]
        assert len(message.data) == message.step * message.height
    assert given


@pytest.mark.parametrize(
    'change, cause',
    [
        ({'encoding': 'nv21'}, 'truncated'),
        ({'encoding': 'p010'}, 'encoding'),
        ({'encoding': ''}, 'encoding'),
        ({'encoding': 'RGB8'}, 'encoding'),
        ({'encoding': '32FC3'}, 'encoding'),
        ({'encoding': '8UC2'}, 'encoding'),
        ({'encoding': '8UC9'}, 'encoding'),
        ({'encoding': 'x' * 100_000}, 'encoding'),
        ({'width': 0}, 'size'),
        ({'height': 0}, 'size'),
        ({'width': 0, 'height': 0, 'step': 0}, 'size'),
        ({'width': 4_294_967_295, 'height': 4_294_967_295}, 'size'),
        ({'height': 100_000}, 'size'),
        ({'step': 0}, 'step'),
        ({'step': 95}, 'step'),
        ({'step': 32}, 'step'),
        ({'step': 97}, 'truncated'),
        ({'step': 4_294_967_295}, 'truncated'),
        ({'height': 25}, 'truncated'),
        ({'data': array.array('B')}, 'truncated'),
        ({'data': array.array('B', bytes(24 * 96 - 1))}, 'truncated'),
        ({'data': array.array('B', bytes(24 * 96 + 1))}, 'step'),
        ({'height': 23}, 'step'),
    ],
)
def test_a_wrong_message_is_refused_by_cause(change, cause):
    message = message_of(picture(), 'rgb8')
    for name, value in change.items():
        setattr(message, name, value)
    assert cause_of(message) == cause


@pytest.mark.parametrize('encoding, dtype', [('rgb8', np.uint8), ('bgr16', np.uint16)])
def test_rows_that_are_too_short_are_a_wrong_step_whatever_the_datas_length(encoding, dtype):
    message = message_of(picture(dtype=dtype), encoding)
    message.step -= 1
    message.data = message.data[: message.step * message.height]
    assert cause_of(message) == 'step'


@pytest.mark.parametrize('height, width', [(1, 1), (1, 5), (5, 1)])
def test_the_smallest_pictures_are_pictures(height, width):
    pixels = picture(height, width)
    assert np.array_equal(rgb_of(message_of(pixels, 'rgb8')), pixels)


def test_a_picture_of_exactly_the_most_pixels_is_taken():
    message = message_of(picture(), 'rgb8')
    assert ros_convert.frame_from_image(message, 'front', 24 * 32).size == (24, 32)
    assert cause_of(message, 24 * 32 - 1) == 'size'


def test_a_tight_rgb_picture_of_a_recording_is_not_copied():
    message = message_of(picture(), 'rgb8')
    assert np.shares_memory(rgb_of_image(message, MAX_PIXELS), np.frombuffer(message.data, np.uint8))


def test_an_unknown_encoding_is_named_shortly():
    message = message_of(picture(), 'rgb8')
    message.encoding = 'y' * 100_000
    with pytest.raises(ImageError, match="encoding is 'yyy") as caught:
        rgb_of(message)
    assert len(str(caught.value)) < 500


def test_yuv422_of_odd_width_is_refused():
    assert cause_of(message_of(picture(width=31, channels=2), 'uyvy')) == 'size'


def test_only_the_last_rows_padding_may_be_missing():
    pixels = picture()
    message = message_of(pixels, 'rgb8', padding=5)
    message.data = message.data[:-5]
    assert np.array_equal(rgb_of(message), pixels)
    message.data = message.data[:-1]
    assert cause_of(message) == 'truncated'


def test_an_image_message_comes_back_as_it_was():
    pixels = picture()[::2, ::-1]
    message = ros_convert.image_message(pixels, HEADER)
    assert (message.height, message.width, message.step, message.encoding) == (12, 32, 96, 'rgb8')
    assert message.header == HEADER
    assert np.array_equal(rgb_of(message), pixels)


def smooth(channels=3, dtype=np.uint8):
    """A picture that JPEG keeps nearly as it is."""
    down, across = np.mgrid[0:1:96j, 0:1:128j] * np.iinfo(dtype).max
    planes = [down, across, (down + across) / 2, down[::-1]][:channels]
    return np.ascontiguousarray(np.stack(planes, axis=2).squeeze()).astype(dtype)


def compressed(pixels, format_text, extension):
    data = cv2.imencode(extension, pixels)[1].tobytes()
    return CompressedImage(header=HEADER, format=format_text, data=array.array('B', data))


def rgb_of_file(message):
    return ros_convert.frame_from_compressed(message, 'front', MAX_PIXELS).rgb


@pytest.mark.parametrize(
    'format_text, extension, allowed',
    [
        ('jpeg', '.jpg', 8),
        ('jpg', '.jpg', 8),
        ('bgr8; jpeg compressed bgr8', '.jpg', 8),
        ('', '.jpg', 8),
        ('rgb8; jpeg compressed bgr8', '.jpg', 8),
        ('png', '.png', 0),
        ('rgb8; png compressed bgr8', '.png', 0),
        ('tiff', '.tiff', 0),
        ('webp', '.bmp', 0),
    ],
)
def test_compressed_colours(format_text, extension, allowed):
    bgr = smooth()
    rgb = rgb_of_file(compressed(bgr, format_text, extension)).astype(int)
    assert np.abs(rgb - bgr[:, :, ::-1]).max() <= allowed


def test_colours_compressed_in_rgb_order_are_not_swapped():
    pixels = smooth()
    assert np.array_equal(rgb_of_file(compressed(pixels, 'rgb8; png compressed rgb8', '.png')), pixels)


@pytest.mark.parametrize(
    'format_text, channels, dtype, same_as',
    [
        ('mono8; png compressed ', 1, np.uint8, 'mono8'),
        ('png', 1, np.uint8, 'mono8'),
        ('png', 4, np.uint8, 'bgra8'),
        ('bayer_grbg8; png compressed bayer_grbg8', 1, np.uint8, 'bayer_grbg8'),
        ('bayer_rggb16; png compressed ', 1, np.uint16, 'bayer_rggb16'),
        ('png', 3, np.uint16, 'bgr16'),
        ('mono16; png compressed ', 1, np.uint16, 'mono16'),
        ('16UC1; png compressed ', 1, np.uint16, '16UC1'),
        ('png', 1, np.uint16, '16UC1'),
    ],
)
def test_compressed_grey_mosaics_and_depth_are_as_their_raw_pictures(format_text, channels, dtype, same_as):
    pixels = smooth(channels, dtype)
    raw = rgb_of(message_of(pixels, same_as))
    assert np.array_equal(rgb_of_file(compressed(pixels, format_text, '.png')), raw)


def test_compressed_floats_are_metres():
    depth = np.linspace(0, 12, 24 * 32).reshape(24, 32).astype(np.float32)
    assert np.array_equal(rgb_of_file(compressed(depth, 'tiff', '.tiff')), rgb_of(message_of(depth, '32FC1')))


@pytest.mark.parametrize('extension', ['.jpg', '.png', '.tiff', '.bmp'])
@pytest.mark.parametrize('kept', [0.0, 0.02, 0.5, 0.9, 'all but one byte'])
def test_a_cut_file_is_refused(extension, kept):
    message = compressed(smooth(), 'any', extension)
    end = len(message.data) - 1 if isinstance(kept, str) else int(len(message.data) * kept)
    message.data = message.data[:end]
    assert cause_of(message) in ('decode', 'truncated')


def test_a_cut_jpeg_is_refused_even_where_the_decoder_would_fill_it_up(monkeypatch):
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: smooth())
    message = compressed(smooth(), 'jpeg', '.jpg')
    message.data = message.data[:-20]
    assert cause_of(message) == 'truncated'


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    bomb = compressed(np.zeros((1200, 1200), np.uint8), 'png', '.png')
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('decoded'))
    assert len(bomb.data) < 5_000 and cause_of(bomb) == 'size'


def test_a_file_that_pillow_takes_for_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(PilImage, 'MAX_IMAGE_PIXELS', 100)
    assert cause_of(compressed(smooth(), 'png', '.png')) == 'size'


def test_a_decoder_that_gives_colours_of_another_depth_is_a_refusal(monkeypatch):
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: smooth().astype(np.float32))
    assert cause_of(compressed(smooth(), 'tiff', '.tiff')) == 'encoding'


def test_what_opencv_fails_at_is_a_refusal(monkeypatch):
    def fail(*_):
        raise cv2.error('no memory')

    file, mosaic = compressed(smooth(), 'png', '.png'), message_of(picture(channels=1), 'bayer_grbg8')
    for function, message in (('imdecode', file), ('cvtColor', mosaic)):
        with monkeypatch.context() as patch:
            patch.setattr(cv2, function, fail)
            assert cause_of(message) == 'decode'


def packed_depth(depth, format_text='16UC1; compressedDepth png', header=(0, 0.0, 0.0), codec='png'):
    """Distances as compressed_depth_image_transport sends them."""
    if codec == 'png':
        data = cv2.imencode('.png', depth)[1].tobytes()
    else:
        data = struct.pack('<II', depth.shape[1], depth.shape[0]) + rvl(depth)
    return CompressedImage(
        header=HEADER, format=format_text, data=array.array('B', struct.pack('<Iff', *header) + data)
    )


def rvl(depth):
    """RVL as its paper writes it down, a nibble at a time."""
    nibbles, values, place, before = [], depth.reshape(-1).astype(int).tolist(), 0, 0

    def write(value):
        while True:
            nibble, value = value & 7, value >> 3
            nibbles.append(nibble | 8 if value else nibble)
            if not value:
                return

    while place < len(values):
        zeros = next((number for number, value in enumerate(values[place:]) if value), len(values) - place)
        write(zeros)
        place += zeros
        run = next((number for number, value in enumerate(values[place:]) if not value), len(values) - place)
        write(run)
        for value in values[place : place + run]:
            delta, before = value - before, value
            write((delta << 1) ^ (delta >> 31))
        place += run
    nibbles += [0] * (-len(nibbles) % 8)
    words = [
        sum(nibble << (28 - 4 * place) for place, nibble in enumerate(nibbles[at : at + 8]))
        for at in range(0, len(nibbles), 8)
    ]
    return struct.pack(f'<{len(words)}I', *words)


def depths():
    """Distances with holes: runs of zeros in the middle and at both ends."""
    depth = np.random.default_rng(0).integers(300, 9000, (24, 32), np.uint16)
    depth[:3], depth[10, 5:20], depth[-1] = 0, 0, 0
    return depth


@pytest.mark.parametrize('codec', ['png', 'rvl'])
@pytest.mark.parametrize('depth', [depths(), depths()[5:9] + 1, np.zeros((4, 6), np.uint16)])
def test_packed_distances_are_as_the_raw_ones(codec, depth):
    message = packed_depth(depth, f'16UC1; compressedDepth {codec}', codec=codec)
    assert np.array_equal(rgb_of_file(message), rgb_of(message_of(depth, '16UC1')))


def test_packed_inverse_distances_are_metres():
    metres = np.linspace(0.5, 9.5, 24 * 32).reshape(24, 32).astype(np.float32)
    a, b = 10_000.0, 900.0  # as the transport derives them from the largest distance and the precision at it
    inverse = np.rint(a / metres + b).astype(np.uint16)
    inverse[0, 0] = 0  # nothing measured
    rgb = rgb_of_file(packed_depth(inverse, '32FC1; compressedDepth png', (1, a, b))).astype(int)
    assert rgb[0, 0, 0] == 0 and np.abs(rgb[1:, :, 0] - metres[1:] * 25.5).max() <= 1


@pytest.mark.parametrize('codec', ['png', 'rvl'])
@pytest.mark.parametrize('end', [0, 11, 12, 15, 19, 21, 60, 200])
def test_cut_packed_distances_are_refused(codec, end):
    message = packed_depth(depths(), codec=codec)
    message.data = message.data[:end]
    assert cause_of(message) in ('truncated', 'decode', 'size')


def test_a_packed_picture_that_says_it_is_huge_is_refused():
    message = packed_depth(depths(), codec='rvl')
    message.data[12:20] = array.array('B', struct.pack('<II', 2**31, 2**31))
    assert cause_of(message) == 'size'


def test_a_converter_that_fails_is_a_refusal(monkeypatch):
    def fail(*_):
        raise KeyError('rgb8')

    monkeypatch.setattr(ros_convert._BRIDGE, 'imgmsg_to_cv2', fail)
    assert cause_of(message_of(picture(), 'bgr8')) == 'decode'


@pytest.mark.skipif(sys.byteorder != 'little', reason='the expectation is written for little-endian machines')
def test_eight_bit_data_marked_big_endian_is_read_as_it_is():
    pixels = picture()
    assert np.array_equal(rgb_of(message_of(pixels, 'rgb8', mark=True)), pixels)


@pytest.mark.parametrize('version, is_named', [('4.14.0', False), ('5.0.0', True)])
def test_opencv_5_is_named_as_the_cause_with_the_remedy(monkeypatch, version, is_named):
    """cv_bridge alone says 'buffer is too small for requested array' or the like."""

    class Bridge:
        def imgmsg_to_cv2(self, *_):
            raise TypeError('buffer is too small for requested array')

    monkeypatch.setattr(ros_convert, '_BRIDGE', Bridge())
    monkeypatch.setattr(cv2, '__version__', version)
    with pytest.raises(ImageError) as error:
        rgb_of(message_of(picture(), 'bgr8'))
    assert (f'OpenCV {version}' in str(error.value)) == ("'opencv-python-headless<5'" in str(error.value)) == is_named
