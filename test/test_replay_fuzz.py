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

"""Files that were cut, mixed up or hit by random bytes: pictures or a sentence, in little memory, never a fault."""

import resource
import sys
import weakref

import numpy as np
import pytest
import recordings
from mcap.records import Chunk
from mcap.stream_reader import StreamReader
from replay_bags import frames, scene
from rosbags.rosbag2 import StoragePlugin

from vlm_reuse_node.replay import cli
from vlm_reuse_node.replay.bag import Bag
from vlm_reuse_node.replay.storage.channel import BagError
from vlm_reuse_node.scene.frame import Frame

MOST_BYTES = 1_000_000_000
PICTURES = 30


def noisy(count=PICTURES):
    """Pictures that do not compress, so that a cut anywhere cuts one."""
    noise = np.random.default_rng(0)
    return [Frame(scene(0) ^ noise.integers(0, 16, (48, 64, 3), np.uint8), each.stamp_ns) for each in frames(count)]


def single_mcap(folder):
    return recordings.mcap(folder, noisy(), recordings.cdr)


def single_db3(folder):
    return recordings.single_file(folder, noisy(), StoragePlugin.SQLITE3)


WRITERS = {
    'mcap': single_mcap,
    'mcap without chunks': lambda folder: recordings.mcap_without_index(folder, noisy()),
    'mcap.zstd': lambda folder: recordings.packed_file(folder, noisy()),
    'db3': single_db3,
    'ROS 1': lambda folder: recordings.ros1_bag(folder, noisy()),
}


def read(path):
    """How many pictures can be read, and whether something is said to be wrong; a refusal is a sentence."""
    try:
        bag = Bag(path)
    except BagError as refused:
        assert '\n' not in str(refused) and str(refused).endswith('.')
        return 0, True
    try:
        count = sum(1 for _ in bag.frames())
    finally:
        bag.close()
    assert all('\n' not in line for line in (*bag.damage, *bag.notes))
    return count, bool(bag.damage)


@pytest.fixture(autouse=True)
def memory():
    """What the tests do takes less than a gigabyte more than what they start with."""
    unit = 1 if sys.platform == 'darwin' else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < MOST_BYTES


@pytest.mark.parametrize('name', WRITERS)
def test_a_file_that_is_cut_anywhere_gives_what_is_before_the_cut(tmp_path, name):
    path = WRITERS[name](tmp_path)
    data, counts = path.read_bytes(), []
    assert read(path) == (PICTURES, False)
    for per_cent in range(100):
        path.write_bytes(data[: len(data) * per_cent // 100])
        count, is_told = read(path)
        assert is_told or count == PICTURES  # a cut in the index alone costs nothing
        counts.append(count)
    assert counts == sorted(counts)
    if name not in ('ROS 1', 'mcap.zstd'):  # an index at the end, and blocks of many pictures
        assert counts[80] > PICTURES / 3


@pytest.mark.parametrize('name', WRITERS)
@pytest.mark.parametrize('seed', range(40))
def test_random_bytes_anywhere_cost_no_more_than_pictures(tmp_path, name, seed):
    random = np.random.default_rng(seed)
    path = WRITERS[name](tmp_path)
    data = bytearray(path.read_bytes())
    for _ in range(int(random.integers(1, 6))):
        length = int(random.choice([1, 4, 64, 4096]))
        at = int(random.integers(0, len(data)))
        data[at : at + length] = random.bytes(min(length, len(data) - at))
    path.write_bytes(data)
    assert read(path)[0] <= PICTURES


@pytest.mark.parametrize('ending', ['.mcap', '.db3', '.bag', '.mcap.zstd', '.db3.zstd', '.bag.zstd'])
@pytest.mark.parametrize('size', [0, 1, 7, 100, 5000])
def test_a_file_of_noise_is_refused(tmp_path, ending, size):
    path = tmp_path / f'bag{ending}'
    path.write_bytes(np.random.default_rng(size).bytes(size))
    assert read(path) == (0, True)


def test_swapped_chunks_keep_their_pictures(tmp_path):
    """Two chunks change places: of one size, so that the index still fits, and of any size."""
    path = single_mcap(tmp_path)
    data = path.read_bytes()
    spans = {}
    with path.open('rb') as stream:
        reader = StreamReader(stream, emit_chunks=True)
        begin = 8
        for record in reader.records:
            if isinstance(record, Chunk):
                spans.setdefault(stream.tell() - begin, []).append((begin, stream.tell()))
            begin = stream.tell()
    _, chunks = max(spans.items(), key=lambda item: len(item[1]))
    for one, other in ((chunks[0], chunks[-1]), (next(iter(spans.values()))[0], list(spans.values())[-1][0])):
        (a, b), (c, d) = sorted([one, other])
        path.write_bytes(data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:])
        count, _ = read(path)
        assert count >= PICTURES / 2


def test_a_length_that_is_broken_asks_for_no_memory(tmp_path):
    path = single_mcap(tmp_path)
    data = bytearray(path.read_bytes())
    with path.open('rb') as stream:
        for record in StreamReader(stream, emit_chunks=True).records:
            if isinstance(record, Chunk):
                break
        end = stream.tell()
    for at in range(end, end + 200):  # where the next record's length is
        broken = data.copy()
        broken[at : at + 8] = (2**62).to_bytes(8, 'little')
        path.write_bytes(broken)
        read(path)


def test_an_hour_is_read_without_keeping_a_picture(tmp_path):
    path = recordings.mcap(tmp_path, frames(3600, step_s=1.0, changes_at=()), recordings.cdr)
    alive, most = weakref.WeakSet(), 0
    bag = Bag(path)
    for number, frame in enumerate(bag.frames()):
        alive.add(frame)
        most = max(most, len(alive))
    assert number == 3599 and most <= 2


def test_a_long_replay_keeps_no_more_pictures_than_a_short_one(tmp_path, model_dir, monkeypatch):
    alive, most = weakref.WeakSet(), []
    begin = Frame.__post_init__

    def count(frame):
        begin(frame)
        alive.add(frame)
        most[-1] = max(most[-1], len(alive))

    monkeypatch.setattr(Frame, '__post_init__', count)
    for pictures in (30, 90):
        most.append(0)
        folder = tmp_path / str(pictures)
        bag = recordings.mcap(folder, frames(pictures, step_s=1.0), recordings.cdr)
        alive.clear()
        most[-1] = 0
        arguments = [str(bag), '--model', str(model_dir), '--arms', 'cold,last-4', '--out', str(folder / 'out')]
        assert cli.main(arguments) == 0
    assert most[1] <= most[0] + 1
