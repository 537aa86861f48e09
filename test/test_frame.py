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

"""A frame's pixels do not change, whoever made them and however; and its age."""

from dataclasses import replace

import numpy as np
import pytest

from vlm_reuse_node.scene.frame import Frame


def pixels():
    """A small picture that owns its memory."""
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


VIEWS = {
    'all of it': lambda array: array[:],
    'a part': lambda array: array[1:5, 2:],
    'other channels first': lambda array: array[..., ::-1],
    'a view of a view': lambda array: array[1:][:, 1:],
    'another shape': lambda array: array.reshape(8, 6, 3),
}


def test_who_writes_to_a_frame_gets_the_error_at_once():
    handed_over = pixels()
    frame = Frame(handed_over)
    for array in (frame.rgb, handed_over, frame.rgb[2:]):
        with pytest.raises(ValueError, match='read-only'):
            array[0, 0] = 1


def test_a_picture_that_owns_its_memory_is_not_copied():
    handed_over = pixels()
    frame = Frame(handed_over)
    assert frame.rgb is handed_over and replace(frame, stamp_ns=1).rgb is handed_over


@pytest.mark.parametrize('view', VIEWS.values(), ids=VIEWS)
def test_a_buffer_that_a_camera_driver_fills_again_does_not_change_a_frame(view):
    buffer = pixels()
    frame, seen = Frame(view(buffer)), view(buffer).copy()
    buffer[:] ^= 0xFF
    assert np.array_equal(frame.rgb, seen) and not frame.rgb.flags.writeable


@pytest.mark.parametrize('view', VIEWS.values(), ids=VIEWS)
def test_a_view_of_what_nobody_can_write_to_is_not_copied(view):
    buffer = pixels()
    buffer.setflags(write=False)
    assert np.shares_memory(Frame(view(buffer)).rgb, buffer)
    data = np.frombuffer(buffer.tobytes(), np.uint8)
    assert np.shares_memory(Frame(data.reshape(6, 8, 3)).rgb, data)


def test_a_part_of_another_frame_is_not_copied():
    frame = Frame(pixels())
    assert np.shares_memory(Frame(frame.rgb[1:5]).rgb, frame.rgb)


@pytest.mark.parametrize(
    ('stamp_ns', 'received_ns', 'since_s'),
    [(2, 0, 1.5), (2, 1, 2.5), (1, 2, 2.5), (5, 0, -1.5), (5, 4, -0.5), (5, 1, 2.5)],
)
def test_a_frame_is_as_old_as_the_earlier_of_stamp_and_arrival(stamp_ns, received_ns, since_s):
    second_ns = 1_000_000_000
    frame = Frame(pixels(), stamp_ns=stamp_ns * second_ns, received_ns=received_ns * second_ns)
    now_ns = 3 * second_ns + second_ns // 2
    assert frame.since_s(now_ns) == since_s and frame.age_s(now_ns) == max(0.0, since_s)


def test_without_a_time_of_arrival_the_stamp_counts():
    assert Frame(pixels()).taken_ns == 0 and Frame(pixels(), stamp_ns=5).taken_ns == 5


def test_the_size_is_height_and_width():
    assert Frame(pixels()).size == (6, 8)
