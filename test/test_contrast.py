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

"""Thermal pictures: what matters is seen, and what stands still does not flicker; the same in a node and a replay."""

import numpy as np
import pytest
import recordings
from replay_bags import BEGIN_NS, TYPES

from vlm_reuse_node.replay.bag import Bag
from vlm_reuse_node.scene.contrast import PATIENCE, Contrast
from vlm_reuse_node.scene.frame import Frame


def room(person_at=None, offset=7000, noise_seed=0):
    """A room in 14 bit counts with a little noise; a person is 250 counts warmer: (48, 64) uint16."""
    counts = offset + np.linspace(0, 300, 48 * 64).reshape(48, 64)
    counts += np.random.default_rng(noise_seed).normal(0, 3, counts.shape)
    if person_at is not None:
        counts[10:40, person_at : person_at + 8] += 250
    return counts.astype(np.uint16)


def test_a_person_is_seen_and_the_wall_stays_as_it_is():
    contrast = Contrast()
    empty, person = contrast.grey(room()).astype(int), contrast.grey(room(20, noise_seed=1)).astype(int)
    assert (person - empty)[10:40, 20:28].min() > 32  # the default change_threshold
    assert np.abs(person - empty)[:, 40:].max() < 16


def test_the_range_is_held_while_a_scene_changes_a_little():
    contrast = Contrast()
    first = contrast.grey(room())
    for seed in range(3 * PATIENCE):
        contrast.grey(room(seed % 50, offset=7000 + seed % 40, noise_seed=seed))
    assert contrast.learnt == 1 and np.array_equal(contrast.grey(room()), first)


def test_the_range_is_learnt_anew_once_it_has_not_suited_for_a_while():
    contrast = Contrast()
    contrast.grey(room())
    for _ in range(PATIENCE - 1):  # a shutter that closes for a moment changes nothing
        contrast.grey(room(offset=9000))
    contrast.grey(room())
    assert contrast.learnt == 1
    for _ in range(PATIENCE):
        grey = contrast.grey(room(offset=9000))
    assert contrast.learnt == 2 and np.ptp(grey) > 64


def test_counts_that_use_all_16_bits_are_scaled_as_a_whole():
    contrast = Contrast()
    counts = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    assert np.array_equal(contrast.grey(counts), np.rint(counts * (255 / 65535)).astype(np.uint8))
    assert contrast.note == ''


def test_a_flat_picture_is_no_noise():
    assert np.ptp(Contrast().grey(np.full((48, 64), 8000, np.uint16))) == 0


@pytest.mark.parametrize('encoding, offset', [('mono16', 7000), ('16UC1', 29_000)])
def test_a_node_and_a_replay_see_the_same_and_say_it(tmp_path, encoding, offset):
    """16UC1 that would be 29 m everywhere is hundredths of a kelvin."""
    ros_convert = pytest.importorskip(
        'vlm_reuse_node.ros.conversion', reason='ROS 2 is missing: install it (make setup)'
    )
    from sensor_msgs.msg import Image

    counts = [room(5 * number, offset, number) for number in range(5)]
    frames = [Frame(np.zeros((48, 64, 3), np.uint8), BEGIN_NS + number * 10**8, '', 'x') for number in range(5)]
    kind, header_type = 'sensor_msgs/msg/Image', TYPES.types['std_msgs/msg/Header']

    def serialize(frame):
        seconds, rest = divmod(frame.stamp_ns, 10**9)
        header = header_type(TYPES.types['builtin_interfaces/msg/Time'](seconds, rest), '')
        data = counts[frames.index(frame)].view(np.uint8).reshape(-1)
        return bytes(TYPES.serialize_cdr(TYPES.types[kind](header, 48, 64, encoding, 0, 128, data), kind))

    bag = Bag(recordings.mcap(tmp_path, frames, serialize))
    replayed = [frame.rgb for frame in bag.frames()]
    contrast = Contrast()
    for picture, rgb in zip(counts, replayed, strict=True):
        message = Image(height=48, width=64, encoding=encoding, step=128, data=picture.tobytes())
        assert np.array_equal(ros_convert.frame_from_image(message, 'x', 10_000, contrast).rgb, rgb)
    assert bag.notes == [f"Pictures of 'camera' are {contrast.note}."] and 'is black' in contrast.note
