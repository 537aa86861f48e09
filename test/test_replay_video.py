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

"""Videos: a replay shows the pictures that FFmpeg decodes, with the stamps of their own packets; damage is counted."""

import sqlite3
from collections import Counter

import numpy as np
import pytest

pytest.importorskip('av', reason='PyAV is missing: pip install av')
import recordings
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_bags import storage_file, write_bag
from rosbags.rosbag2 import StoragePlugin
from video_recordings import (
    ENCODERS,
    FOXGLOVE,
    KEY_EVERY,
    TOPIC,
    json_video,
    stamp,
    video,
    write_ros1_video,
    write_video,
)

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.replay import cli, results
from vlm_reuse_node.replay.bag import Bag, Selection
from vlm_reuse_node.replay.storage.channel import BagError
from vlm_reuse_node.scene import video_decoder
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.video_decoder import VideoDecoder, VideoPacket, decoder_of

MOST = 10**6


def read(path, **options):
    bag = Bag(path, Selection(**options))
    found = list(bag.frames())
    bag.close()
    return found, bag


def assert_same(found, pictures):
    """The frames have the stamps and the pixels of these pictures."""
    assert [frame.stamp_ns for frame in found] == sorted(pictures)
    assert all(np.array_equal(frame.rgb, pictures[frame.stamp_ns]) for frame in found)


def decoded(packets, max_pixels=MOST):
    """The stamps of the pictures of some packets, and the refusals by cause."""
    refused = Counter()
    decoder = VideoDecoder(lambda error: refused.update([error.cause]))
    stamps = [picture.packet.stamp_ns for packet in packets for picture in decoder.decode(packet, max_pixels)]
    return [*stamps, *(picture.packet.stamp_ns for picture in decoder.finish(max_pixels))], refused


@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize('codec', ENCODERS)
def test_a_replay_shows_the_pictures_of_the_video(tmp_path, codec, storage):
    made = video(codec)
    found, bag = read(write_video(tmp_path / 'bag', made.packets, storage=storage))
    assert_same(found, made.pictures)
    assert {(frame.camera, frame.frame_id) for frame in found} == {('camera', 'camera_optical')}
    assert bag.damage == [] and bag.notes == [] and bag.used['camera'] == bag.read['camera'] == 24


@pytest.mark.parametrize('codec', ['h264', 'hevc'])
def test_pictures_that_are_sent_out_of_order_get_their_own_stamps(tmp_path, codec):
    made = video(codec, b_frames=2)
    stamps = [packet.stamp_ns for packet in made.packets]
    assert stamps != sorted(stamps)
    found, bag = read(write_video(tmp_path / 'bag', made.packets))
    assert_same(found, made.pictures)
    assert len(found) == 24 and bag.damage == []


def test_every_message_with_a_video_is_read(tmp_path):
    made = video('h264', named='h264')
    packets = {packet.stamp_ns: packet for packet in made.packets}
    frames = [Frame(rgb, stamp_ns) for stamp_ns, rgb in made.pictures.items()]
    bags = [
        write_video(tmp_path / 'foxglove', made.packets, FOXGLOVE, topic='/camera/image_raw'),
        write_ros1_video(tmp_path / 'one.bag', made.packets),
        recordings.mcap(
            tmp_path / 'json',
            frames,
            lambda frame: json_video(packets[frame.stamp_ns]),
            encoding='json',
            kind='foxglove.CompressedVideo',
            schema=('jsonschema', b'{}'),
        ),
    ]
    for path in bags:
        assert_same(read(path)[0], made.pictures)


def test_a_recording_without_definitions_is_read(tmp_path):
    made = video()
    path = write_video(tmp_path / 'bag', made.packets, storage=StoragePlugin.SQLITE3)
    with sqlite3.connect(storage_file(path)) as connection:
        connection.execute('DROP TABLE message_definitions')
    assert_same(read(path)[0], made.pictures)


def test_the_recordings_own_definition_is_used(tmp_path):
    made = video(count=8)
    text = b'uint8 flags\nuint64 pts\nstd_msgs/Header header\nstring encoding\nuint8[] data\n'
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    kind = 'ffmpeg_image_transport_msgs/msg/FFMPEGPacket'
    types = get_typestore(Stores.ROS2_KILTED)
    types.register(get_types_from_msg(text.decode(), kind))
    header, time = types.types['std_msgs/msg/Header'], types.types['builtin_interfaces/msg/Time']

    def serialize(frame):
        packet = next(packet for packet in made.packets if packet.stamp_ns == frame.stamp_ns)
        parts = divmod(packet.stamp_ns, 1_000_000_000)
        data = np.frombuffer(packet.data, np.uint8)
        message = types.types[kind](int(packet.is_key), packet.pts, header(time(*parts), 'lens'), packet.codec, data)
        return bytes(types.serialize_cdr(message, kind))

    frames = [Frame(rgb, stamp_ns) for stamp_ns, rgb in made.pictures.items()]
    assert_same(
        read(recordings.mcap(tmp_path, frames, serialize, kind=kind, schema=('ros2msg', text)))[0], made.pictures
    )


def test_the_video_gives_the_results_of_a_bag_of_its_pictures(tmp_path, model_dir):
    made = video()
    questions = tmp_path / 'questions.yaml'
    questions.write_text(yaml.safe_dump({'questions': [{'question': 'what is this', 'every_s': 0.2, 'max_tokens': 2}]}))

    def replay(bag):
        arguments = ['--questions', str(questions), '--model', str(model_dir), '--arms', 'cold', '--out']
        assert cli.main([str(bag), *arguments, str(bag / 'out')]) == 0
        found = results.without_times(results.read(bag / 'out' / 'results.json'))
        found['bags'][0]['cameras'][0] |= {'topic': '', 'type': ''}
        return found

    plain = [Frame(rgb, stamp_ns, 'camera_optical') for stamp_ns, rgb in made.pictures.items()]
    assert replay(write_video(tmp_path / 'video' / 'bag', made.packets)) == replay(
        write_bag(tmp_path / 'plain' / 'bag', {'/camera/image_raw': plain})
    )


def test_of_several_kinds_of_pictures_the_video_is_the_last_choice(tmp_path):
    made = video(count=8)
    path = write_video(tmp_path / 'bag', made.packets)
    found, bag = read(path, topics=(TOPIC,))
    assert len(found) == 8 and bag.topics[0].is_video


def test_a_part_of_a_video_shows_the_same_pictures(tmp_path):
    """What is left out is decoded all the same, for those behind it."""
    made = video()
    found, bag = read(write_video(tmp_path / 'bag', made.packets), start_s=0.5, rate_limit_hz=12.5)
    assert [frame.stamp_ns for frame in found] == [stamp(number) for number in range(13, 24, 2)]
    assert all(np.array_equal(frame.rgb, made.pictures[frame.stamp_ns]) for frame in found)


def test_a_video_that_begins_in_the_middle_begins_with_its_first_key_frame(tmp_path):
    made = video()
    found, bag = read(write_video(tmp_path / 'bag', made.packets[3:]))
    assert [frame.stamp_ns for frame in found] == [stamp(number) for number in range(KEY_EVERY, 24)]
    assert bag.refused['camera'] == {'key frame': KEY_EVERY - 3}
    assert len(bag.damage) == 1 and 'next key frame' in bag.damage[0]


@pytest.mark.parametrize('codec', ENCODERS)
def test_after_a_lost_packet_pictures_go_on_with_the_next_key_frame(codec):
    packets = video(codec).packets
    stamps, refused = decoded([*packets[:5], *packets[6:]])
    assert stamps == [stamp(number) for number in (*range(5), *range(KEY_EVERY, 24))]
    assert refused['lost'] == 1 and refused.total() == KEY_EVERY - 5


@pytest.mark.parametrize('codec', ['h264', 'av1'])
def test_a_damaged_packet_is_counted_and_the_next_key_frame_is_shown(codec):
    packets = video(codec).packets
    cut = VideoPacket(packets[5].data[: len(packets[5].data) // 2], packets[5].codec, stamp(5), pts=5, is_key=False)
    stamps, refused = decoded([*packets[:5], cut, *packets[6:]])
    assert set(range(KEY_EVERY, 24)) <= {(each - stamp(0)) // (stamp(1) - stamp(0)) for each in stamps}
    assert refused['decode'] == 1 and len(stamps) + refused.total() == 24


def test_an_empty_packet_is_no_end():
    packets = video().packets
    stamps, refused = decoded([*packets[:5], VideoPacket(b'', 'h264', stamp(5), pts=5), *packets[6:]])
    assert stamps[-1] == stamp(23) and refused['truncated'] == 1 and len(stamps) + refused.total() == 24


def test_an_encoder_that_starts_anew_is_followed():
    packets = video(count=12).packets
    stamps, refused = decoded([*packets, *packets])
    assert len(stamps) == 24 and not refused


def test_a_codec_that_changes_is_followed():
    both = [*video('h264', count=8).packets, *video('hevc', count=8).packets]
    stamps, refused = decoded(both)
    assert len(stamps) == 16 and not refused


@pytest.mark.parametrize('codec', ENCODERS)
def test_pictures_that_are_too_large_are_refused(codec):
    packets = video(codec).packets
    assert decoded(packets, 64 * 48)[1] == {}
    assert decoded(packets, 64 * 48 - 1) == ([], {'size': 24})


@pytest.mark.parametrize('codec', ENCODERS)
def test_a_decoder_makes_no_picture_that_is_far_too_large(codec):
    """FFmpeg refuses the size before it allocates, so that no picture comes out of it."""
    context = video_decoder._context(decoder_of(codec), 1000)
    packets = video(codec, count=2, size=(640, 480)).packets
    with pytest.raises(Exception):  # FFmpeg's own error, another one in each decoder
        context.decode(video_decoder._av_packet(packets[0].data, 1))
    assert decoded(packets, 1000)[0] == [] and decoded(packets, 1000)[1].total() == 2


@pytest.mark.parametrize(
    'name, decoder',
    [
        ('libx264', 'h264'),
        ('h264_nvenc;nv12;bgr8;bgr8', 'h264'),
        ('hevc_vaapi', 'hevc'),
        ('h265', 'hevc'),
        ('av1', 'libdav1d'),
        ('libvpx-vp9', 'vp9'),
    ],
)
def test_encoders_are_known_by_their_names(name, decoder):
    assert decoder_of(name) == decoder


@pytest.mark.parametrize('name', ['', 'h264_', 'rawvideo', 'png', 'concat:/etc/passwd', 'libx264_x' * 1000])
def test_an_unknown_codec_is_refused_in_a_short_sentence(name):
    with pytest.raises(ImageError, match='expected h264') as refused:
        decoder_of(name)
    assert refused.value.cause == 'encoding' and len(str(refused.value)) < 300


def test_without_pyav_the_bag_is_refused_with_what_to_install(tmp_path, monkeypatch):
    path = write_video(tmp_path / 'bag', video(count=8).packets)
    monkeypatch.setattr('vlm_reuse_node.replay.image_topics.can_decode_video', lambda: False)
    with pytest.raises(BagError, match="extra 'video'.*pip install av"):
        Bag(path)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(ENCODERS)), st.data())
def test_no_damage_raises_or_loses_count(codec, data):
    """Bytes cut, changed, doubled and exchanged: each packet becomes a picture or a refusal, no more."""
    packets = list(_packets(codec))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(packets) - 1))
        packet = packets[place]
        broken = bytearray(packet.data)
        how = data.draw(st.sampled_from(['cut', 'change', 'double', 'noise', 'drop', 'swap']))
        if how == 'cut':
            broken = broken[: data.draw(st.integers(0, len(broken)))]
        elif how == 'change' and broken:
            for _ in range(data.draw(st.integers(1, 8))):
                broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
        elif how == 'double':
            broken = broken * 2
        elif how == 'noise':
            broken = bytearray(data.draw(st.binary(max_size=200)))
        elif how == 'swap':
            other = data.draw(st.integers(0, len(packets) - 1))
            packets[place], packets[other] = packets[other], packets[place]
            continue
        if how == 'drop' and len(packets) > 1:
            del packets[place]
        else:
            packets[place] = VideoPacket(
                bytes(broken), packet.codec, packet.stamp_ns, pts=packet.pts, is_key=packet.is_key
            )
    stamps, refused = decoded(packets)
    assert len(stamps) + refused.total() - refused['lost'] == len(packets)


_MADE = {}


def _packets(codec):
    if codec not in _MADE:
        _MADE[codec] = video(codec).packets
    return _MADE[codec]
