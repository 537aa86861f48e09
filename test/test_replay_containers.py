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

"""Every container that robots and their tools write gives the pictures of the plain bag, and no damage."""

from functools import partial

import numpy as np
import pytest
import recordings
import yaml
from replay_bags import frames, write_bag
from rosbags.rosbag2 import StoragePlugin

from vlm_reuse_node.replay import cli, results
from vlm_reuse_node.replay.bag import Bag
from vlm_reuse_node.replay.storage.channel import BagError
from vlm_reuse_node.scene.frame import Frame

SQLITE = StoragePlugin.SQLITE3
CONTAINERS = {
    'directory': recordings.directory,
    'directory of sqlite3': partial(recordings.directory, storage=SQLITE),
    'no metadata': recordings.without_metadata,
    'no metadata, sqlite3': partial(recordings.without_metadata, storage=SQLITE),
    'mcap.zstd': recordings.packed_file,
    'db3.zstd': partial(recordings.packed_file, storage=SQLITE),
    'files compressed': recordings.compressed_files,
    'files compressed, no metadata': partial(recordings.compressed_files, has_metadata=False),
    'files compressed, mcap': partial(recordings.compressed_files, storage=StoragePlugin.MCAP),
    'messages compressed': recordings.compressed_messages,
    'messages compressed, no metadata': partial(recordings.compressed_messages, has_metadata=False),
    'messages compressed, mcap': partial(
        recordings.compressed_messages, storage=StoragePlugin.MCAP, has_metadata=False
    ),
    'split, no metadata': recordings.split,
    'killed while recording': recordings.killed_sqlite,
    'ROS 1': recordings.ros1_bag,
    'ROS 1 in mcap': recordings.ros1_mcap,
    'mcap without profile': recordings.mcap_without_profile,
    'mcap without chunks': recordings.mcap_without_index,
    'old type names': recordings.old_type_names,
    'Foxglove JSON': recordings.foxglove_json,
    'Foxglove JSON, compressed': partial(recordings.foxglove_json, is_compressed=True),
    'Foxglove protobuf': recordings.foxglove_protobuf,
    'Foxglove protobuf, compressed': partial(recordings.foxglove_protobuf, is_compressed=True),
}


def write(name, folder, pictures):
    """Write a recording; skip what needs a package that is missing."""
    if 'protobuf' in name:
        pytest.importorskip('mcap_protobuf', reason='mcap-protobuf-support is missing (make setup)')
    return CONTAINERS[name](folder, pictures)


@pytest.mark.parametrize('name', CONTAINERS)
def test_every_container_gives_the_same_pictures_and_no_damage(tmp_path, name):
    given = frames(6)
    bag = Bag(write(name, tmp_path, given))
    found = list(bag.frames())
    bag.close()
    assert [(frame.stamp_ns, frame.frame_id, frame.camera) for frame in found] == [
        (frame.stamp_ns, 'camera_optical', 'camera') for frame in given
    ]
    assert all(np.array_equal(one.rgb, other.rgb) for one, other in zip(found, given))
    assert bag.damage == [] and bag.notes == [] and bag.used['camera'] == 6
    if 'split' not in name:  # a file of one picture has no length
        assert bag.seconds == pytest.approx(2.5, abs=0.001)


def replayed(folder, container, model_dir):
    """The results of six pictures in a container, without times."""
    questions = folder / 'questions.yaml'
    questions.write_text(yaml.safe_dump({'questions': [{'question': 'what is this', 'every_s': 1.0, 'max_tokens': 2}]}))
    bag = write(container, folder, frames(6))
    arguments = ['--questions', str(questions), '--model', str(model_dir), '--arms', 'cold', '--out']
    assert cli.main([str(bag), *arguments, str(folder / 'out')]) == 0
    return results.without_times(results.read(folder / 'out' / 'results.json'))


@pytest.fixture(scope='module')
def plain_results(tmp_path_factory, model_dir):
    """Those of a container that all others are compared with."""
    return replayed(tmp_path_factory.mktemp('plain'), 'no metadata', model_dir)


@pytest.mark.parametrize('name', ['directory', 'mcap.zstd', 'killed while recording', 'ROS 1', 'ROS 1 in mcap'])
def test_every_container_gives_the_same_results(tmp_path, model_dir, plain_results, name):
    """Even the name of the message type is the same: ROS 2's."""
    assert replayed(tmp_path, name, model_dir) == plain_results


def test_a_killed_recorders_files_are_not_touched(tmp_path):
    path = recordings.killed_sqlite(tmp_path, frames(4))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    bag = Bag(path)
    assert len(list(bag.frames())) == 4
    bag.close()
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_bag_whose_file_was_renamed_is_read(tmp_path):
    path = recordings.compressed_files(tmp_path, frames(4))
    next(path.glob('*.zstd')).rename(path / 'other.db3.zstd')
    assert len(list(Bag(path).frames())) == 4


def test_messages_that_metadata_promises_and_that_are_not_there_are_told(tmp_path):
    path = recordings.directory(tmp_path, frames(6))
    metadata = path / 'metadata.yaml'
    metadata.write_text(metadata.read_text().replace('message_count: 6', 'message_count: 8'))
    bag = Bag(path)
    list(bag.frames())
    assert '6 pictures of the 8 that metadata.yaml names' in bag.damage[0]


def test_a_cut_zstd_file_gives_what_is_in_it(tmp_path):
    noise = np.random.default_rng(0)
    given = [Frame(noise.integers(0, 256, (48, 64, 3), np.uint8), frame.stamp_ns) for frame in frames(300)]
    packed = recordings.packed_file(tmp_path, given)
    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size * 2 // 3])
    bag = Bag(packed)
    found = list(bag.frames())
    assert 0 < len(found) < 300 and len(bag.damage) == 1


@pytest.mark.parametrize(
    'kind, remedy',
    [
        ('theora_image_transport/msg/Packet', 'Theora is not decoded; .* image_transport republish theora raw'),
    ],
)
def test_a_video_that_is_not_decoded_is_named_with_what_to_do(tmp_path, kind, remedy):
    path = recordings.mcap(tmp_path, frames(2), recordings.cdr, kind=kind)
    with pytest.raises(BagError, match=remedy):
        Bag(path)


def test_a_ros1_bag_without_its_index_is_refused_with_what_to_do(tmp_path):
    path = recordings.ros1_bag(tmp_path, frames(4))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BagError, match='rosbag reindex'):
        Bag(path)


def test_depth_is_no_camera_that_has_to_be_chosen(tmp_path):
    topics = {'/camera/color/image_raw': frames(3), '/camera/depth/image_rect_raw': frames(3)}
    bag = Bag(write_bag(tmp_path / 'bag', topics))
    assert [topic.camera for topic in bag.topics] == ['camera/color']
    assert bag.notes == [
        '/camera/depth/image_rect_raw is not replayed: it is named as distances; '
        '--topic /camera/depth/image_rect_raw replays it.'
    ]
    only = Bag(write_bag(tmp_path / 'only', {'/camera/depth/image_rect_raw': frames(3)}))
    assert len(list(only.frames())) == 3
