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

"""What the change detector compares: cells as masks, frames at two scales, changes of exposure, and pans."""

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlm_reuse_node.scene.cells import grown, spread
from vlm_reuse_node.scene.exposure import BRIGHTEST, DARKEST, difference, exposure_gain
from vlm_reuse_node.scene.pan import LEAST_SHIFT, is_panned
from vlm_reuse_node.scene.scaled_frame import BLOCKS, LEAST_SHRUNK, SMALL_WIDTH, ScaledFrame

ROWS, COLUMNS, CELL_PX = 3, 4, 28
SIZE = ROWS * CELL_PX, COLUMNS * CELL_PX
masks = st.lists(st.booleans(), min_size=ROWS * COLUMNS, max_size=ROWS * COLUMNS).map(
    lambda each: np.array(each).reshape(ROWS, COLUMNS)
)
seeds = st.integers(0, 2**32 - 1)


def noise(height, width, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)


def scaled(rgb, rows=ROWS, columns=COLUMNS):
    return ScaledFrame.of(rgb, rows, columns, CELL_PX)


def flat_cells(values):
    """A frame of one row of cells, each of one grey level."""
    return scaled(np.repeat(np.uint8(values), CELL_PX)[None, :, None].repeat(CELL_PX, 0).repeat(3, 2), 1, len(values))


# --- cells ------------------------------------------------------------------------------------------------------------


@given(masks, st.integers(1, 9), st.integers(1, 9))
def test_a_mask_of_pixels_is_set_where_its_cells_are(cells, height, width):
    mask = spread(cells, ROWS * height, COLUMNS * width)
    assert np.array_equal(mask, 255 * np.kron(cells, np.ones((height, width), np.uint8)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=3), st.integers(0, 3))
def test_cells_grow_by_their_halo_on_every_side(chosen, halo):
    cells = np.zeros((6, 8), bool)
    for cell in chosen:
        cells[cell] = True
    expected = [
        any(abs(row - y) <= halo and abs(column - x) <= halo for y, x in chosen)
        for row, column in np.ndindex(*cells.shape)
    ]
    assert grown(cells, halo).ravel().tolist() == expected


# --- frames at two scales ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('times', [1, 2, 3])
def test_a_frame_is_shrunk_to_its_cells_and_their_blocks_by_averaging(times):
    rgb = noise(times * SIZE[0], times * SIZE[1])
    frame = scaled(rgb)
    for picture, shape in zip(frame.scales, (SIZE, (BLOCKS * ROWS, BLOCKS * COLUMNS))):
        height, width = shape
        means = rgb.reshape(height, len(rgb) // height, width, -1, 3).mean(axis=(1, 3))
        assert picture.dtype == np.uint8 and np.abs(picture - means).max() <= 1
    assert frame.grey.dtype == np.float32
    assert np.abs(frame.grey - frame.blocks @ [0.299, 0.587, 0.114]).max() <= 1


@pytest.mark.parametrize('rows, columns', [(1, 1), (1, 4), (4, 1)])
@pytest.mark.parametrize('height, width', [(1, 1), (1.25, 1.25), (2.25, 2.25), (1, 3), (3, 1), (4, 4)])
def test_every_pixel_of_the_camera_counts(rows, columns, height, width):
    """Also where it differs alone."""
    black = np.zeros((round(height * rows * CELL_PX), round(width * columns * CELL_PX), 3), np.uint8)
    for row, column in np.random.default_rng(0).integers(0, black.shape[:2], (100, 2)):
        rgb = black.copy()
        rgb[row, column] = 255
        assert scaled(rgb, rows, columns).pixels.any()


@pytest.mark.parametrize('height, width', [(1, LEAST_SHRUNK), (LEAST_SHRUNK, 1), (2, 2)])
def test_every_pixel_counts_the_same_where_a_frame_is_shrunk(height, width):
    shape = round(height * CELL_PX), round(width * CELL_PX)
    for each in range(3):
        down, across = (np.arange(side) % 3 == each for side in shape)
        for bright in (down[:, None] & np.ones(shape[1], bool), np.ones(shape[0], bool)[:, None] & across):
            rgb = np.uint8(240 * bright)[..., None].repeat(3, 2)
            assert scaled(rgb, 1, 1).pixels.mean() == pytest.approx(rgb.mean(), abs=1)


@pytest.mark.parametrize('width', [SMALL_WIDTH // 2, SMALL_WIDTH, 3 * SMALL_WIDTH, 5 * SMALL_WIDTH])
@pytest.mark.parametrize('share', [0.01, 0.5, 1.5])
def test_the_small_picture_is_the_frame_in_grey_and_keeps_its_shape(width, share):
    down, across = np.mgrid[0 : 255 : max(1, int(share * width)) * 1j, 0 : 255 : width * 1j]
    pixels = np.stack([down, across, (down + across) / 2], axis=2).astype(np.uint8)
    small = ScaledFrame(pixels, pixels, pixels[..., 0]).small
    height = max(1, SMALL_WIDTH * pixels.shape[0] // width)
    assert small.shape == (height, SMALL_WIDTH) and small.dtype == np.float32
    expected = cv2.resize(
        pixels @ np.float32([0.299, 0.587, 0.114]), (SMALL_WIDTH, height), interpolation=cv2.INTER_AREA
    )
    assert np.abs(small - expected).max() <= 255 / min(small.shape[1], *pixels.shape[:2], 40)


@given(st.sampled_from([2, 3, 4, 6]))
def test_the_small_picture_averages_noise(times):
    pixels = np.random.default_rng(times).integers(0, 256, (60, times * SMALL_WIDTH, 1), dtype=np.uint8).repeat(3, 2)
    small = ScaledFrame(pixels, pixels, pixels[..., 0]).small
    assert small.std() < 0.6 * pixels.std()


@given(st.floats(0.5, 2))
def test_a_frame_under_another_exposure_is_that_many_times_as_bright(gain):
    frame = scaled(noise(*SIZE))
    exposed = frame.exposed(gain)
    for now, then in zip(exposed.scales, frame.scales):
        assert now.dtype == np.uint8 and np.abs(now - np.minimum(gain * then.astype(float), 255)).max() <= 0.51
    assert np.allclose(exposed.grey, gain * frame.grey)


def test_a_copy_has_arrays_of_its_own():
    frame = scaled(noise(*SIZE))
    before, copy = [each.copy() for each in (*frame.scales, frame.grey)], frame.copy()
    for each in (*copy.scales, copy.grey):
        each[:] = 0
    assert all(map(np.array_equal, (*frame.scales, frame.grey), before))


@given(masks)
def test_a_frame_with_cells_of_another_one_is_that_one_there_and_itself_elsewhere(cells):
    frame, other = (scaled(noise(*SIZE, seed)) for seed in (0, 1))
    small, mine, theirs = frame.small, frame.copy(), other.copy()
    mixed = frame.with_cells(other, cells)
    for name in ('pixels', 'blocks', 'grey'):
        now, old, new = (getattr(each, name) for each in (mixed, mine, theirs))
        mask = np.kron(cells, np.ones([side // count for side, count in zip(now.shape, cells.shape)], bool))
        assert np.array_equal(now[mask], new[mask]) and np.array_equal(now[~mask], old[~mask])
    if cells.any():
        assert not np.array_equal(mixed.small, small)  # what was made of the old pixels is not kept
    if cells.all():
        assert np.array_equal(mixed.small, other.small)


# --- exposure ---------------------------------------------------------------------------------------------------------


@given(st.floats(0.7, 1.4), st.floats(0.1, 0.5))
def test_a_change_of_exposure_is_told_within_its_limit(gain, most):
    then = np.random.default_rng(0).integers(60, 160, 24)
    now = np.rint(then * gain)
    found = exposure_gain(flat_cells(now), flat_cells(then), most)
    ratio = float(np.median(now / then))
    assume(abs(max(ratio, 1 / ratio) - 1 - most) > 1e-6)  # the detector computes in single precision
    assert found == pytest.approx(ratio if 1 / 255 < max(ratio, 1 / ratio) - 1 <= most else 1.0)


@pytest.mark.parametrize('now, then, most', [(125, 100, 0.25), (100, 200, 1.0)])
def test_the_largest_change_of_exposure_is_within_its_limit(now, then, most):
    assert exposure_gain(flat_cells([now] * 4), flat_cells([then] * 4), most) == now / then
    assert exposure_gain(flat_cells([now] * 4), flat_cells([then] * 4), most - 0.01) == 1


@given(seeds)
def test_what_changed_in_less_than_half_of_the_cells_is_no_exposure(seed):
    then = np.full(9, 100)
    now = then.copy()
    now[np.random.default_rng(seed).permutation(9)[:4]] = [60, 120, 150, 200]
    assert exposure_gain(flat_cells(now), flat_cells(then), 1.0) == 1


@pytest.mark.parametrize('hidden', [(5, 6), (6, 5), (250, 220), (220, 250), (10, 200)])
def test_exposure_is_told_from_cells_that_are_neither_black_nor_white_if_there_are_some(hidden):
    """One in ten is enough; of the others no ratio says what the camera did."""
    now, then = ([value] * 9 for value in hidden)
    assert exposure_gain(flat_cells([*now, 120]), flat_cells([*then, 80]), 0.5) == 1.5
    assert exposure_gain(flat_cells([*now, hidden[0], 120]), flat_cells([*then, hidden[1], 80]), 0.5) == 1


def test_exposure_is_told_from_the_darkest_cells_on_but_not_from_the_brightest():
    assert exposure_gain(flat_cells([DARKEST * 1.25] * 4), flat_cells([DARKEST] * 4), 0.5) == 1.25
    assert exposure_gain(flat_cells([BRIGHTEST] * 4), flat_cells([BRIGHTEST / 1.25] * 4), 0.5) == 1


def test_a_cell_of_black_and_white_parts_counts_with_its_mean():
    striped = np.kron(np.tile([0, 1], BLOCKS // 2 * 4), np.ones((CELL_PX, CELL_PX // BLOCKS)))  # every other block
    then, now = (scaled((striped[..., None] * white).repeat(3, 2).astype(np.uint8), 1, 4) for white in (200, 250))
    assert exposure_gain(now, then, 0.5) == 1.25


@given(st.floats(1.001, 1.9), seeds)
def test_a_difference_without_its_exposure_is_none_whichever_is_the_brighter_one(gain, seed):
    dark = noise(8, 8, seed)
    bright = cv2.convertScaleAbs(dark, alpha=gain)
    assert not difference(bright, dark, gain).any() and not difference(dark, bright, 1 / gain).max() > 1
    assert np.array_equal(difference(bright, dark, 1.0), bright - dark)
    assert np.array_equal(difference(dark, bright, 1.0), bright - dark)


@given(st.floats(1.1, 1.9), seeds)
def test_what_differs_beside_the_exposure_is_what_the_brighter_one_shows(gain, seed):
    dark, other = noise(8, 8, seed, 0, 120), noise(8, 8, seed + 1, 0, 256)
    expected = cv2.absdiff(cv2.convertScaleAbs(dark, alpha=gain), other)
    assert np.array_equal(difference(other, dark, gain), expected)
    assert np.abs(difference(dark, other, 1 / gain).astype(int) - expected).max() <= 1


# --- pans -------------------------------------------------------------------------------------------------------------

HEIGHT, WIDTH = 96, SMALL_WIDTH


def texture(seed=0):
    """Blurred noise, larger than a small picture by more than its size on every side."""
    rough = np.random.default_rng(seed).uniform(0, 255, (3 * HEIGHT, 3 * WIDTH)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(rough, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def view(wide, down=0, across=0):
    return np.ascontiguousarray(wide[HEIGHT + down : 2 * HEIGHT + down, WIDTH + across : 2 * WIDTH + across])


WIDE = texture()
DIRECTIONS = [(0, 1), (0, -1), (1, 0), (-1, 0), (0.7, 0.7), (-0.7, 0.7)]


@pytest.mark.parametrize('down, across', DIRECTIONS)
@pytest.mark.parametrize('pixels', [2, 10, 30, 40])
def test_a_shifted_picture_is_a_pan_in_every_direction(down, across, pixels):
    assert is_panned(view(WIDE, round(down * pixels), round(across * pixels)), view(WIDE))


def test_the_least_shift_is_a_pan_and_none_is_not():
    assert is_panned(view(WIDE, 0, 1), view(WIDE)) and is_panned(view(WIDE, 1, 0), view(WIDE))
    assert not is_panned(view(WIDE), view(WIDE))


def test_a_shift_by_more_than_half_of_the_shorter_side_is_none():
    for across in (HEIGHT // 2 + 5, -HEIGHT // 2 - 5):
        assert not is_panned(view(WIDE, 0, across), view(WIDE))


@given(seeds)
@settings(max_examples=10)
def test_another_picture_is_no_pan(seed):
    assert not is_panned(view(texture(seed + 1)), view(WIDE))


@pytest.mark.parametrize('rows, is_pan', [(20, True), (76, False)])
def test_a_shift_that_explains_the_smaller_part_of_the_difference_is_no_pan(rows, is_pan):
    now = view(WIDE, 0, 6)
    now[:rows] = view(texture(9))[:rows]
    assert is_panned(now, view(WIDE)) == is_pan


@pytest.mark.parametrize('across', [LEAST_SHIFT, HEIGHT / 2])
def test_the_least_and_the_largest_shift_are_pans(monkeypatch, across):
    then = view(WIDE)
    now = cv2.warpAffine(then, np.float32([[1, 0, across], [0, 1, 0]]), (WIDTH, HEIGHT))
    monkeypatch.setattr(cv2, 'phaseCorrelate', lambda *_: ((across, 0.0), 1.0))
    assert is_panned(now, then)


@pytest.mark.parametrize('contrast, is_pan', [(0.2, True), (0.005, False)])
def test_a_picture_without_contrast_does_not_tell_a_pan(contrast, is_pan):
    assert is_panned(view(contrast * WIDE, 6, 6), view(contrast * WIDE)) == is_pan


def test_a_thing_that_moves_before_a_plain_wall_is_no_pan():
    wall, thing = np.full((HEIGHT, WIDTH), 100, np.float32), view(WIDE)[:30, :30]
    then, now = wall.copy(), wall.copy()
    then[30:60, 30:60], now[30:60, 36:66] = thing, thing
    assert not is_panned(now, then)


def test_a_pan_is_one_although_things_move_on_their_own():
    now = view(WIDE, 0, 9)
    now[:30, :30] = view(texture(5))[:30, :30]
    assert is_panned(now, view(WIDE))


def test_the_pictures_stay_as_they_were():
    now, then = view(WIDE, 0, 6), view(WIDE)
    before = now.copy(), then.copy()
    is_panned(now, then)
    assert np.array_equal(now, before[0]) and np.array_equal(then, before[1])
