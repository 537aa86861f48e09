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

"""The overlay: orange lines are around what was paid for, hatched is stale, everything else is the camera's pixels."""

import numpy as np
import pytest

from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.overlay import BAR_HEIGHT, BLACK, BLUE, ORANGE, draw_overlay, percent
from vlm_reuse_node.scene.refresh import Level, Refresh


def scene(height=480, width=640, rows=17, columns=23):
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Frame(rgb), np.zeros((rows, columns), bool), np.zeros((rows, columns), bool)


def drawn(frame, refreshed, stale):
    refresh = Refresh(
        'camera', 0, '', Level.FRAME, 'some cells changed', refreshed, stale, prefill_ms=12.34, changed=refreshed
    )
    return draw_overlay(frame, refresh)


def test_what_was_reused_is_as_the_camera_saw_it():
    frame, refreshed, stale = scene()
    before = frame.rgb.copy()
    overlay = drawn(frame, refreshed, stale)
    assert overlay.shape == (480 + BAR_HEIGHT, 640, 3) and overlay.dtype == np.uint8
    assert np.array_equal(overlay[:480], frame.rgb) and np.array_equal(frame.rgb, before)


def test_refreshed_cells_have_an_orange_outline_and_the_colours_of_the_camera_in_it():
    frame, refreshed, stale = scene(rows=4, columns=4)
    refreshed[1, 2] = True
    overlay = drawn(frame, refreshed, stale)
    cell = np.s_[120:240, 320:480]
    shown, seen = overlay[cell].copy(), frame.rgb[cell]
    edges = (shown[0], shown[-1], shown[:, 0], shown[:, -1])
    assert all((edge == ORANGE).all() for edge in edges)
    is_line = (shown == ORANGE).all(axis=2) | (shown == BLACK).all(axis=2)
    assert is_line.mean() < 0.15 and np.array_equal(shown[~is_line], seen[~is_line])
    overlay[cell] = seen
    assert np.array_equal(overlay[:480], frame.rgb)


@pytest.mark.parametrize('rows, columns', [(4, 4), (17, 23), (37, 50)])
def test_a_whole_picture_that_was_refreshed_has_lines_between_its_cells(rows, columns):
    frame, refreshed, stale = scene(rows=rows, columns=columns)
    refreshed[:] = True
    orange = (drawn(frame, refreshed, stale)[:480] == ORANGE).all(axis=2)
    inside = orange[8:-8, 8:-8]
    assert inside.all(axis=1).sum() == rows - 1 and inside.all(axis=0).sum() == columns - 1
    assert orange[0].all() and orange[:, -1].all()


def test_stale_cells_are_hatched_and_still_visible():
    frame, refreshed, stale = scene(rows=4, columns=4)
    stale[0, 0] = True
    cell = drawn(frame, refreshed, stale)[:120, :160]
    blue = (cell == BLUE).all(axis=2)
    assert 0.2 < blue.mean() < 0.4
    assert np.array_equal(cell[~blue], frame.rgb[:120, :160][~blue])


def test_a_cell_that_was_paid_for_is_orange_even_if_a_newer_picture_differs_there():
    """The three shares of the bar add up all the same."""
    frame, refreshed, stale = scene(rows=4, columns=4)
    refreshed[0, :2] = True
    without = drawn(frame, refreshed, stale)
    stale[0, :2] = True
    assert np.array_equal(drawn(frame, refreshed, stale), without)


@pytest.mark.parametrize('size', [(1, 1), (2, 300), (37, 41), (1080, 1920)])
def test_any_picture_size_has_an_overlay(size):
    frame, refreshed, stale = scene(*size)
    refreshed[:], stale[0] = True, True
    assert drawn(frame, refreshed, stale).shape == (size[0] + BAR_HEIGHT, size[1], 3)


def test_the_bar_is_written_on():
    frame, refreshed, stale = scene()
    first = drawn(frame, refreshed, stale)[480:]
    refreshed[:3] = True
    assert (first > 200).any() and not np.array_equal(first, drawn(frame, refreshed, stale)[480:])


@pytest.mark.parametrize(
    'count, total, text',
    [(0, 0, '0 %'), (0, 391, '0 %'), (1, 391, '< 1 %'), (50, 100, '50 %'), (390, 391, '> 99 %'), (391, 391, '100 %')],
)
def test_zero_and_hundred_percent_are_only_written_when_true(count, total, text):
    assert percent(count, total) == text
