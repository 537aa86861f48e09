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

"""Bags in process: every storage and transport gives the same frames; damaged ones give what is left of them."""

from pathlib import Path

import numpy as np
import pytest
from replay_bags import BEGIN_NS, COMPRESSED, IMAGE, frames, storage_file, truncate, write_bag
from rosbags.rosbag2 import StoragePlugin

from vlm_reuse_node.replay.bag import Bag, Selection
from vlm_reuse_node.replay.storage.channel import BagError, natural_order

TOPIC = '/camera/image_raw'


def read(path, **options):
    """The frames of a bag, and the bag."""
    bag = Bag(path, Selection(**options))
    found = list(bag.frames())
    bag.close()
    return found, bag


@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize('kind', [IMAGE, COMPRESSED])
def test_every_storage_and_transport_gives_the_same_frames(tmp_path, storage, kind):
    given = frames(5)
    topic = TOPIC + ('/compressed' if kind == COMPRESSED else '')
    path = write_bag(tmp_path / 'bag', {topic: given}, storage=storage, kind=kind)
    for place in (path, storage_file(path)):
        found, bag = read(place)
        assert [frame.stamp_ns for frame in found] == [frame.stamp_ns for frame in given]
        assert all(np.array_equal(one.rgb, other.rgb) for one, other in zip(found, given))
        assert {(frame.camera, frame.frame_id) for frame in found} == {('camera', 'camera_optical')}
        assert bag.damage == [] and bag.used['camera'] == 5


def test_several_cameras_have_to_be_named(tmp_path):
    path = write_bag(tmp_path / 'bag', {'/front/image_raw': frames(3, 'front'), '/back/image_raw': frames(2, 'back')})
    with pytest.raises(BagError, match='/back/image_raw, /front/image_raw; say which to replay: --topic'):
        read(path)
    found, bag = read(path, topics=('/front/image_raw', '/back/image_raw'))
    assert [frame.camera for frame in found].count('back') == 2 and len(found) == 5
    assert [frame.camera for frame in read(path, topics=('/back/image_raw',))[0]] == ['back'] * 2


def test_a_topic_without_a_message_is_no_camera(tmp_path):
    path = write_bag(tmp_path / 'bag', {TOPIC: frames(2)}, silent=('/back/image_raw',))
    assert [frame.camera for frame in read(path)[0]] == ['camera'] * 2


@pytest.mark.parametrize(
    'options, numbers',
    [
        ({'start_s': 1.0}, [2, 3, 4, 5, 6, 7]),
        ({'duration_s': 1.0}, [0, 1]),
        ({'start_s': 0.5, 'duration_s': 1.5}, [1, 2, 3]),
        ({'rate_limit_hz': 1.0}, [0, 2, 4, 6]),
        ({'rate_limit_hz': 2.0}, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_a_part_of_a_bag_counts_from_its_first_picture(tmp_path, options, numbers):
    path = write_bag(tmp_path / 'bag', {TOPIC: frames(8)})
    found, bag = read(path, **options)
    assert [bag.at_s(frame) for frame in found] == [0.5 * number for number in numbers]
    assert sum(bag.left_out.get('camera', {}).values()) == 8 - len(numbers)


@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_of_a_truncated_bag_what_is_there_is_read_and_what_is_not_is_said(tmp_path, storage):
    path = truncate(write_bag(tmp_path / 'bag', {TOPIC: frames(400)}, storage=storage), 0.6)
    found, bag = read(path)
    assert 50 < len(found) < 400
    assert [frame.stamp_ns for frame in found] == [frame.stamp_ns for frame in frames(len(found))]
    assert len(bag.damage) == 1
    assert f'{len(found)} pictures of the 400 that metadata.yaml names were read' in bag.damage[0]


def test_a_bag_without_its_metadata_is_read(tmp_path):
    path = write_bag(tmp_path / 'bag', {TOPIC: frames(5)})
    (path / 'metadata.yaml').unlink()
    found, bag = read(path)
    assert len(found) == 5 and bag.damage == []


def test_broken_bytes_in_the_middle_cost_their_chunk_only(tmp_path):
    path = write_bag(tmp_path / 'bag', {TOPIC: frames(400)})
    file = storage_file(path)
    with file.open('r+b') as stream:
        stream.seek(round(0.5 * file.stat().st_size))
        stream.write(b'\xff' * 40_000)
    found, bag = read(path)
    stamps = [frame.stamp_ns for frame in found]
    assert stamps == sorted(stamps) and stamps[-1] == frames(400)[-1].stamp_ns
    assert len(found) < 400 and len(bag.damage) >= 1


@pytest.mark.parametrize(
    'make, sentence',
    [
        (lambda folder: folder / 'none', 'There is no bag'),
        (lambda folder: folder, 'is no recording'),
        (
            lambda folder: write_bag(folder / 'bag', {'/chatter': []}),
            r'has no pictures: its topics are /chatter \(std_msgs/msg/String\)',
        ),
        (lambda folder: truncate(write_bag(folder / 'bag', {TOPIC: frames(3)}), 0.001), 'nothing in it can be read'),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_one_sentence(tmp_path, make, sentence):
    with pytest.raises(BagError, match=sentence) as refused:
        Bag(make(tmp_path))
    assert '\n' not in str(refused.value)


def test_a_topic_that_is_not_there_is_named(tmp_path):
    path = write_bag(tmp_path / 'bag', {TOPIC: frames(1)})
    with pytest.raises(BagError, match='no pictures on /other; it has them on /camera/image_raw'):
        Bag(path, Selection(topics=('/other',)))


def test_a_picture_without_a_stamp_has_the_time_of_its_recording(tmp_path):
    found, bag = read(write_bag(tmp_path / 'bag', {TOPIC: frames(3)}, stamped=False))
    assert [frame.stamp_ns - BEGIN_NS for frame in found] == [0, 500_000_000, 1_000_000_000]


def test_pictures_that_cannot_be_used_are_counted_by_cause(tmp_path):
    path = write_bag(tmp_path / 'bag', {TOPIC: frames(3)})
    found, bag = read(path, max_pixels=100)
    assert found == [] and bag.refused['camera'] == {'size': 3}
    assert len(bag.damage) == 1 and '64 x 48' in bag.damage[0]


def test_pictures_that_go_back_in_time_are_left_out_and_counted(tmp_path):
    given = frames(4)
    path = write_bag(tmp_path / 'bag', {TOPIC: [given[0], given[2], given[2], given[3]]})
    found, bag = read(path)
    assert len(found) == 3 and bag.left_out['camera'] == {'not newer than the one before': 1}
    assert bag.damage == ["Pictures of 'camera' left out: 1 (not newer than the one before)."]


def test_files_are_read_in_the_order_of_their_numbers():
    files = [Path(f'bag_{number}.mcap') for number in (10, 9, 2)]
    assert [file.name for file in sorted(files, key=natural_order)] == ['bag_2.mcap', 'bag_9.mcap', 'bag_10.mcap']
