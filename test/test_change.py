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

"""The change detector: what it sees, what it does not, what it costs, and its benchmark."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vlm_reuse_node.config import Config
from vlm_reuse_node.demo.tabletop import Sensor, Tabletop, moved, random_things, sense
from vlm_reuse_node.scene.change import ChangeDetector, SceneChange

sys.path.append(str(Path(__file__).parents[1] / 'bench'))

import change as bench
import change_events

SECOND_NS = 1_000_000_000
CONFIG = Config()
BASE = np.random.default_rng(0).integers(40, 200, (12, 16, 3), dtype=np.uint8).repeat(40, 0).repeat(40, 1)
GRIDS = [(9, 12), (17, 23)]  # of the embedded model, and of Qwen2.5-VL at full size


def detector_of(rgb, rows=6, columns=8):
    return ChangeDetector(rgb, 0, rows, columns, 28)


def brightened(rgb, row, column, levels):
    """One of 6 x 8 cells, 80 x 80 px of the camera's picture, so many grey levels brighter in its middle."""
    rgb = rgb.copy()
    rgb[80 * row + 20 : 80 * row + 60, 80 * column + 20 : 80 * column + 60] += np.uint8(levels)
    return rgb


def noisy(rgb, seed, sensor=Sensor()):
    return sense(rgb.astype(np.float32), sensor, np.random.default_rng(seed))


def cells(mask):
    return [(int(row), int(column)) for row, column in np.argwhere(mask)]


def faded(pictures, config=CONFIG):
    """Compute every picture whole, at 10 Hz. Returns (picture, cells) for each picture that reports changed cells."""
    detector, reports = detector_of(BASE), []
    for number, rgb in enumerate(pictures, 1):
        change = detector.compare(rgb, number * SECOND_NS // 10, config)
        detector.refresh()
        changed = cells(detector.report_changed(change.stale, config))
        reports += [(number, changed)] if changed else []
    return reports


def test_a_slow_change_is_reported_once_it_adds_up_to_the_threshold():
    """From one picture to the next it never reaches the threshold."""
    reports = faded(brightened(BASE, 2, 3, 4 * step) for step in range(1, 14))
    assert reports == [(5, [(2, 3)]), (10, [(2, 3)])]


def test_a_small_lasting_difference_is_reported_after_the_age_limit():
    slightly = brightened(BASE, 2, 3, 15)
    reports = faded([slightly] * 150, Config(max_cell_age_s=10.0))
    assert reports == [(102, [(2, 3)])]


def test_a_small_difference_is_reported_even_if_nothing_is_computed_any_more():
    detector, slightly = detector_of(BASE), brightened(BASE, 2, 3, 15)
    detector.compare(slightly, SECOND_NS, CONFIG)
    detector.refresh()
    nothing, one = np.zeros((2, 6, 8), bool)
    one[0, 0] = True
    assert cells(detector.report_changed(one, CONFIG)) == [(0, 0)]
    detector.compare(slightly, 5 * SECOND_NS, CONFIG)
    assert not detector.report_changed(nothing, CONFIG).any()
    detector.compare(slightly, 12 * SECOND_NS, CONFIG)
    assert cells(detector.report_changed(nothing, CONFIG)) == [(2, 3)]
    assert not detector.report_changed(nothing, CONFIG).any()


@pytest.mark.parametrize('quiet_s', [1, 20])
@pytest.mark.parametrize('alpha', [1.0, 1.1])
def test_a_new_small_difference_is_not_reported_however_long_the_scene_was_still(quiet_s, alpha):
    detector, nothing = detector_of(BASE), np.zeros((6, 8), bool)
    for second in range(1, quiet_s + 1):
        assert not detector.compare(BASE, second * SECOND_NS, CONFIG).stale.any()
        assert not detector.report_changed(nothing, CONFIG).any()
    both = cv2.convertScaleAbs(brightened(brightened(BASE, 2, 3, 15), 0, 0, 50), alpha=alpha)
    change = detector.compare(both, quiet_s * SECOND_NS + SECOND_NS // 10, CONFIG)
    detector.refresh()
    assert cells(detector.report_changed(change.stale, CONFIG)) == [(0, 0)]


def test_noise_and_exposure_are_not_reported():
    assert not faded([noisy(BASE, seed) for seed in range(40)])
    assert not faded([cv2.convertScaleAbs(BASE, alpha=1 + 0.1 * (number % 2)) for number in range(40)])


def test_the_same_picture_has_no_difference():
    change = detector_of(BASE).compare(BASE.copy(), SECOND_NS, CONFIG)
    assert not change.difference.any() and not change.stale.any() and not change.doubt_s.any()
    assert change.scene == SceneChange.SAME


@pytest.mark.parametrize('row, column', [(0, 0), (5, 7), (2, 3)])
@pytest.mark.parametrize('channel', [0, 1, 2])
def test_only_the_cell_that_changed_is_found(row, column, channel):
    changed = BASE.copy()
    changed[80 * row + 20 : 80 * row + 60, 80 * column + 20 : 80 * column + 60, channel] += 50
    change = detector_of(BASE).compare(changed, SECOND_NS, CONFIG)
    assert change.difference.shape == (6, 8) and change.difference.dtype == np.uint8
    assert change.difference[row, column] == 50 and np.count_nonzero(change.difference) == 1
    assert cells(change.changed) == cells(change.stale) == [(row, column)]


def test_the_cached_picture_is_a_copy():
    mine = BASE.copy()
    detector, exact = detector_of(mine, 480 // 28, 640 // 28), detector_of(cv2.resize(mine, (224, 168)))
    mine[:] = 0
    assert detector.compare(mine, 1, CONFIG).difference.min() >= 40
    assert exact.compare(mine, 1, CONFIG).difference.min() >= 40


def test_a_refresh_moves_the_reference_of_its_cells_alone():
    detector, both = detector_of(BASE), brightened(brightened(BASE, 1, 2, 50), 4, 6, 50)
    change = detector.compare(both, SECOND_NS, CONFIG)
    assert cells(change.stale) == [(1, 2), (4, 6)]
    only = np.zeros((6, 8), bool)
    only[1, 2] = True
    detector.refresh(only)
    change = detector.compare(both, 2 * SECOND_NS, CONFIG)
    assert cells(change.stale) == [(4, 6)] and change.doubt_s[4, 6] == 2 and np.count_nonzero(change.doubt_s) == 1
    change = detector.compare(BASE, 3 * SECOND_NS, CONFIG)
    assert cells(change.stale) == [(1, 2)]
    detector.refresh()
    assert not detector.doubt_s(3 * SECOND_NS).any()
    assert not detector.compare(BASE, 4 * SECOND_NS, CONFIG).difference.any()


def test_between_the_thresholds_a_cell_is_in_doubt_until_its_age_limit():
    detector, doubtful = detector_of(BASE), brightened(BASE, 2, 3, 15)
    for stamp_s in (1, 5, 10):
        change = detector.compare(doubtful, stamp_s * SECOND_NS, CONFIG)
        assert change.doubt_s[2, 3] == stamp_s and not change.stale.any()
    assert cells(detector.compare(doubtful, 10 * SECOND_NS + 1, CONFIG).stale) == [(2, 3)]
    change = detector.compare(BASE, 11 * SECOND_NS, CONFIG)
    assert not change.stale.any() and not change.doubt_s.any()


def test_a_changed_cell_stays_changed_until_it_is_static_or_refreshed():
    detector = detector_of(BASE)
    for levels, is_changed in ((15, False), (30, True), (15, True), (7, False), (15, False)):
        change = detector.compare(brightened(BASE, 2, 3, levels), SECOND_NS, CONFIG)
        assert change.changed[2, 3] == is_changed
    detector.compare(brightened(BASE, 2, 3, 30), SECOND_NS, CONFIG)
    detector.refresh()
    assert not detector.compare(brightened(BASE, 2, 3, 15), SECOND_NS, CONFIG).changed.any()


@pytest.mark.parametrize('halo, count', [(0, 1), (1, 6), (2, 15)])
def test_a_halo_is_refreshed_with_the_changed_cell(halo, count):
    config = Config(change_halo=halo)
    change = detector_of(BASE).compare(brightened(BASE, 0, 3, 50), SECOND_NS, config)
    assert change.changed.sum() == 1 and change.stale.sum() == count


def test_thresholds_may_change_between_pictures():
    detector, rgb = detector_of(BASE), brightened(BASE, 2, 3, 15)
    assert not detector.compare(rgb, 1, CONFIG).stale.any()
    assert detector.compare(rgb, 2, CONFIG.with_values(change_threshold=15)).stale.any()
    assert not detector.compare(rgb, 3, CONFIG.with_values(change_threshold=100)).stale.any()


@pytest.mark.parametrize('noise', [0, 3])
def test_a_region_that_drifts_by_one_grey_level_a_picture_is_seen_long_before_its_age_limit(noise):
    detector, seen = detector_of(noisy(BASE, 0, Sensor(noise))), None
    for number in range(1, 40):
        rgb = brightened(BASE, 2, 3, number)
        change = detector.compare(noisy(rgb, number, Sensor(noise)), number * SECOND_NS // 10, CONFIG)
        if change.changed.any():
            seen = number, cells(change.changed), change.doubt_s[2, 3]
            break
    assert seen[0] <= CONFIG.change_threshold and seen[1] == [(2, 3)] and 0.5 < seen[2] < CONFIG.max_cell_age_s / 2


@pytest.mark.parametrize('factor', [0.85, 1.15])
def test_a_lasting_change_of_exposure_is_paid_for_at_the_age_limit(factor):
    detector, rgb = detector_of(BASE), np.clip(BASE * factor, 0, 255).astype(np.uint8)
    for stamp_s in (1, 10):
        change = detector.compare(rgb, stamp_s * SECOND_NS, CONFIG)
        assert not change.stale.any() and change.difference.max() <= 2 and change.doubt_s.max() == stamp_s
    assert detector.compare(rgb, 11 * SECOND_NS, CONFIG).stale.mean() > 0.9
    detector.refresh()
    change = detector.compare(rgb, 12 * SECOND_NS, CONFIG)
    assert not change.difference.any() and not change.doubt_s.any()
    without = Config(exposure_compensation=0.0)
    assert detector_of(BASE).compare(np.clip(BASE * 1.2, 0, 255).astype(np.uint8), 1, without).changed.any()


def test_a_large_change_of_exposure_is_a_change():
    change = detector_of(BASE).compare(np.clip(BASE * 1.4, 0, 255).astype(np.uint8), 1, CONFIG)
    assert change.scene == SceneChange.CUT and change.stale.all()


def test_what_changes_while_the_exposure_does_is_seen_and_nothing_else():
    rgb = np.clip(brightened(BASE, 2, 3, 50) * 0.9, 0, 255).astype(np.uint8)
    assert cells(detector_of(BASE).compare(rgb, 1, CONFIG).changed) == [(2, 3)]


def test_white_stays_white_whatever_the_exposure():
    """A lamp is as white as a picture can be, before and after."""
    lamp = (slice(80, 400), slice(160, 480))
    rgbs = [np.clip(BASE * factor, 0, 254).astype(np.uint8) for factor in (1, 0.82)]
    for rgb in rgbs:
        rgb[lamp] = 255
    assert (rgbs[0] - rgbs[1]).max() > CONFIG.change_threshold
    for then, now in (rgbs, rgbs[::-1]):
        assert not detector_of(then).compare(now, 1, CONFIG).changed.any()


def test_things_of_another_brightness_are_no_exposure():
    """Half of the picture gets darker by one factor, and nothing else does."""
    shaded = BASE.copy()
    shaded[:, :360] = cv2.convertScaleAbs(BASE, alpha=0.8)[:, :360]
    change = detector_of(BASE).compare(shaded, 1, CONFIG)
    assert change.changed[:, :4].all() and not change.changed[:, 5:].any()


def test_cells_refreshed_under_another_light_are_compared_like_the_others():
    detector, scene, only = detector_of(BASE), brightened(BASE, 2, 3, 50), np.zeros((6, 8), bool)
    only[2, 3] = True
    lit = [np.clip(scene * factor, 0, 255).astype(np.uint8) for factor in (0.9, 1.0, 1.1)]
    assert cells(detector.compare(lit[0], SECOND_NS, CONFIG).changed) == [(2, 3)]
    detector.refresh(only)
    for stamp_s, rgb in enumerate((lit[2], lit[1], lit[0]), 2):
        change = detector.compare(rgb, stamp_s * SECOND_NS, CONFIG)
        assert not change.stale.any() and change.difference.max() <= 3
        assert (change.doubt_s[2, 3] == 0) == (rgb is lit[0])


def test_noise_above_the_threshold_is_learnt_and_a_change_is_still_seen():
    pictures = [noisy(BASE, number, Sensor(8)) for number in range(12)]
    assert np.mean(cv2.absdiff(pictures[0], pictures[1]) >= CONFIG.change_threshold) > 0.05
    detector = detector_of(pictures[0], 17, 23)
    for number, rgb in enumerate(pictures[1:], 1):
        if detector.compare(rgb, number * SECOND_NS // 10, CONFIG).stale.any():
            assert number <= 3
            detector.refresh()
    for number in range(12, 16):  # and it does not turn into noise while it waits for its refresh
        rgb = noisy(brightened(BASE, 2, 3, 40), number, Sensor(8))
        assert detector.compare(rgb, number * SECOND_NS // 10, CONFIG).changed.any()


@pytest.mark.parametrize('sensor', [Sensor(), Sensor(5.0), Sensor(jpeg_quality=85), Sensor(1.0, 60)])
def test_a_static_table_costs_nothing(sensor):
    for row in bench.watch(lambda time_s: sensor, seconds=6, rate_hz=10, seed=1):
        assert row['paid_frame'] <= 0.02 and (sensor.jpeg_quality or row['oldest_s'] < CONFIG.max_cell_age_s / 2)


def test_a_flickering_lamp_costs_nothing():
    for row in bench.watch(bench.flicker, seconds=2, rate_hz=30, seed=1):
        assert row['paid_frame'] <= 0.05 and row['oldest_s'] < 0.5


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('kind', change_events.KINDS)
def test_every_cell_that_a_small_thing_touches_is_seen(kind, grid):
    tally = change_events.count_events(Sensor(), grid, kind, count=3, seed=5)
    assert tally['touched'] > 5 and tally['misses'] == 0 and tally['false_alarms'] == 0


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('seed', [0, 1])
def test_a_pan_is_told_from_a_cut_and_from_things_that_move(grid, seed):
    rng = np.random.default_rng(seed)
    table, things = Tabletop(rng, 800, 600), random_things(rng, 4)
    wide, pushed = table.picture(things), moved(rng, things[0], things[1:])
    here, beside = wide[60:540, 80:720], wide[65:545, 96:736]
    elsewhere = table.picture((pushed, *things[1:]))[60:540, 80:720]
    for rgb, scene in (
        (beside, SceneChange.PAN),
        (255 - here, SceneChange.CUT),
        (elsewhere, SceneChange.SAME),
        (here, SceneChange.SAME),
    ):
        change = ChangeDetector(noisy(here, 1), 0, *grid, 28).compare(noisy(rgb, 2), 1, CONFIG)
        assert change.scene == scene and change.stale.all() == (scene != SceneChange.SAME)


def test_a_pan_is_told_by_the_pixels_that_are_cached_now():
    """The old picture was compared with another one already; all cells but one have been that one's since."""
    rng = np.random.default_rng(3)
    wide = Tabletop(rng, 800, 600).picture(random_things(rng, 4))
    here, beside = (noisy(rgb, seed) for seed, rgb in enumerate((wide[60:540, 80:720], wide[65:545, 96:736])))
    detector = ChangeDetector(np.ascontiguousarray(here[::-1, ::-1]), 0, *GRIDS[0], 28)
    assert detector.compare(here, 1, CONFIG).changed.mean() > 0.1  # enough to be looked at for a pan
    cells = np.ones(GRIDS[0], bool)
    cells[0, 0] = False
    detector.refresh(cells)
    assert detector.compare(beside, 2, CONFIG).scene == SceneChange.PAN


# --- pictures on the model's own grid, in which every pixel is as it is written ---------------------------------------

ROWS, COLUMNS, CELL_PX = 5, 7, 28
SPOT = 2, 3  # a cell in the middle
CHECKERS = np.where(np.indices((CELL_PX, CELL_PX)).sum(axis=0) % 2, 1, -1)[..., None]  # with a mean of nothing


def plain(level=100):
    return np.full((ROWS * CELL_PX, COLUMNS * CELL_PX, 3), level, np.uint8)


def put(rgb, cell, change):
    """The picture with a cell so many levels brighter: one number, or one for each of its pixels."""
    rgb, (row, column) = rgb.astype(int), cell
    rgb[CELL_PX * row : CELL_PX * (row + 1), CELL_PX * column : CELL_PX * (column + 1)] += change
    return np.clip(rgb, 0, 255).astype(np.uint8)


def plain_detector():
    return detector_of(plain(), ROWS, COLUMNS)


@pytest.mark.parametrize('count, is_changed', [(7, False), (8, True)])
def test_a_cell_has_changed_when_one_in_a_hundred_of_its_pixels_has(count, is_changed):
    rgb = plain()
    for number in range(count):  # no two in one block
        row, column = divmod(number, 4)
        rgb[2 * CELL_PX + 7 * row, 3 * CELL_PX + 7 * column] += 40
    change = plain_detector().compare(rgb, 1, CONFIG)
    assert change.changed[SPOT] == is_changed == change.changed.any() and change.difference.max() <= 1


def test_a_block_that_differs_is_a_change_although_no_pixel_is_beyond_the_noise():
    detector = plain_detector()
    detector._noise = np.full((ROWS, COLUMNS), 8.0)
    now = plain()
    now[2 * CELL_PX + 7 : 2 * CELL_PX + 14, 3 * CELL_PX : 3 * CELL_PX + 7] += 30
    detector.compare(now, 0, CONFIG)  # the time stands still: nothing is learnt
    assert cells(detector.compare(now, 0, CONFIG).changed) == [SPOT]


@pytest.mark.parametrize(
    'levels, is_changed, is_doubted', [(20, True, True), (19, False, True), (10, False, True), (9, False, False)]
)
def test_a_difference_that_reaches_a_threshold_is_not_below_it(levels, is_changed, is_doubted):
    change = plain_detector().compare(put(plain(), SPOT, levels), SECOND_NS, CONFIG)
    assert (change.changed[SPOT], change.doubt_s[SPOT] > 0) == (is_changed, is_doubted)


@given(gain=st.floats(0.85, 1.2), levels=st.integers(-20, 20))
@example(gain=1.03, levels=6)  # of which neither is visible alone
def test_no_cell_is_static_whose_pixels_differ_visibly_from_the_cached_ones_whatever_the_exposure(gain, levels):
    now = put(cv2.convertScaleAbs(plain(), alpha=gain), SPOT, levels)
    change = plain_detector().compare(now, SECOND_NS, CONFIG)
    differs = (
        np.abs(now.astype(int) - plain()).reshape(ROWS, CELL_PX, COLUMNS, -1).max(axis=(1, 3))
        >= CONFIG.static_threshold
    )
    assert (change.doubt_s[differs] > 0).all()


@given(gain=st.floats(0.85, 1.2))
def test_what_stays_as_it_is_while_the_exposure_changes_has_not_changed(gain):
    """A screen, beside things that a lamp shines at."""
    now = cv2.convertScaleAbs(plain(), alpha=gain)
    now = put(now, SPOT, 100 - int(now[0, 0, 0]))
    change = plain_detector().compare(now, SECOND_NS, CONFIG)
    assert not change.changed.any() and change.difference[SPOT] == 0


def test_a_refresh_before_the_second_picture_changes_nothing():
    detector, some = plain_detector(), np.zeros((ROWS, COLUMNS), bool)
    some[SPOT] = True
    detector.refresh(some)
    change = detector.compare(plain(), SECOND_NS, CONFIG)
    assert not change.difference.any() and not change.doubt_s.any()


@pytest.mark.parametrize('gain', [0.5, 0.8, 1.0, 1.25, 2.0])
def test_a_cell_that_is_refreshed_under_any_light_is_what_it_was_when_the_light_is_back(gain):
    config, thing = Config(exposure_compensation=1.0), put(plain(), SPOT, -80)
    detector = plain_detector()
    assert cells(detector.compare(cv2.convertScaleAbs(thing, alpha=gain), SECOND_NS, config).changed) == [SPOT]
    detector.refresh(mask(SPOT))
    change = detector.compare(thing, 2 * SECOND_NS, config)
    assert not change.changed.any() and change.difference.max() <= 1


@pytest.mark.parametrize('count, scene', [(5, SceneChange.SAME), (6, SceneChange.CUT), (10, SceneChange.CUT)])
def test_a_cut_is_told_from_six_of_ten_changed_cells_on(count, scene):
    rgb = plain()[: 2 * CELL_PX, : 5 * CELL_PX]
    now = rgb.copy()
    for cell in range(count):
        now[:, CELL_PX * (cell % 5) :][CELL_PX * (cell // 5) :][:CELL_PX, :CELL_PX] = 250
    change = detector_of(rgb, 2, 5).compare(now, 1, CONFIG)
    assert change.changed.sum() == count and change.scene == scene


def test_a_camera_that_moves_past_what_looks_all_the_same_is_no_pan():
    rough = np.random.default_rng(0).uniform(-4, 4, (ROWS * CELL_PX, (COLUMNS + 1) * CELL_PX))
    wall = (100 + 8 * cv2.GaussianBlur(rough, (0, 0), 3)).astype(np.uint8)[..., None].repeat(3, 2)
    then, now = (np.ascontiguousarray(wall[:, start : start + COLUMNS * CELL_PX]) for start in (0, 9))
    change = detector_of(then, ROWS, COLUMNS).compare(now, 1, CONFIG)
    assert change.difference.any() and not change.changed.any() and change.scene == SceneChange.SAME


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('levels', [35, 45])
def test_what_comes_and_goes_is_no_noise(levels):
    detector = plain_detector()
    for number in range(20):
        shows = number % 2 == 1
        change = detector.compare(put(plain(), SPOT, CHECKERS * levels * shows), number + 1, CONFIG)
        assert change.changed[SPOT] == shows


@pytest.mark.parametrize('noise', [8, 20, 60])
def test_however_noisy_it_is_a_large_difference_is_seen(noise):
    detector, rng = plain_detector(), np.random.default_rng(0)
    for number in range(1, 9):
        rgb = np.clip(rng.normal(100, noise, plain().shape), 0, 255).astype(np.uint8)
        detector.compare(rgb, number * SECOND_NS, CONFIG)
        detector.refresh()
    spot = tuple(slice(CELL_PX * each, CELL_PX * (each + 1)) for each in SPOT)
    rgb[spot] = np.where(rgb[spot] < 128, 255, 0)
    assert detector.compare(rgb, 9 * SECOND_NS, CONFIG).changed[SPOT]


# --- what is told, deferred and settled -------------------------------------------------------------------------------


def mask(*chosen):
    found = np.zeros((ROWS, COLUMNS), bool)
    for cell in chosen:
        found[cell] = True
    return found


NONE, ALL = mask(), ~mask()


def shown(detector, rgb, stamp_ns, config=CONFIG):
    """What is told of a picture that is computed whole."""
    change = detector.compare(rgb, stamp_ns, config)
    detector.refresh()
    return detector.report_changed(change.stale, config)


def test_a_scene_that_stays_the_same_is_never_told():
    detector = plain_detector()
    assert not any(shown(detector, plain(), second * SECOND_NS).any() for second in range(1, 40))


def test_what_faded_is_told_beside_what_changed():
    detector, faded, changed = plain_detector(), SPOT, (0, 0)
    for step in range(1, 5):
        assert not shown(detector, put(plain(), faded, 4 * step), step).any()
    both = put(put(plain(), faded, 20), changed, 50)
    assert cells(shown(detector, both, 5)) == [changed, faded]


@pytest.mark.parametrize('gain', [0.6, 1.5])
def test_a_lasting_change_of_exposure_is_told_once_after_the_age_limit(gain):
    detector, config = plain_detector(), Config(exposure_compensation=1.0)
    assert abs(100 * gain - 100) > config.change_threshold
    lit, told = cv2.convertScaleAbs(plain(), alpha=gain), []
    for second in range(1, 40):
        if (news := shown(detector, lit, second * SECOND_NS, config)).any():
            told.append((second, news.all()))
    assert told == [(12, True)]


@pytest.mark.parametrize('late_ns, is_told', [(0, False), (1, True)])
def test_what_differs_a_little_is_told_right_after_the_age_limit(late_ns, is_told):
    detector, slightly = plain_detector(), put(plain(), SPOT, 15)
    assert not shown(detector, slightly, SECOND_NS).any()
    assert shown(detector, slightly, 11 * SECOND_NS + late_ns)[SPOT] == is_told


def test_deferred_cells_stay_stale_until_they_are_refreshed_whatever_they_show():
    detector, one, other = plain_detector(), (1, 1), (3, 4)
    detector.compare(put(put(plain(), one, 50), other, 50), SECOND_NS, CONFIG)
    detector.defer(mask(one, other))
    assert cells(detector.deferred) == [one, other]
    change = detector.compare(plain(), 2 * SECOND_NS, CONFIG)
    assert cells(change.stale) == [one, other] and not change.changed.any()
    assert change.doubt_s[one] == 2 and change.doubt_s[SPOT] == 0  # whether it is what is cached is not known
    detector.refresh(mask(one))
    assert cells(detector.deferred) == [other]
    assert cells(detector.compare(plain(), 3 * SECOND_NS, CONFIG).stale) == [other]


def test_what_was_done_about_a_frame_is_booked_at_once():
    """Told is what was both stale and computed. The lag is that of the oldest cell that waits."""
    detector, one, other, late = plain_detector(), (1, 1), (3, 4), (4, 6)
    first = detector.compare(put(plain(), one, 50), SECOND_NS, CONFIG)
    changed = detector.settle(NONE, mask(one), first.stale, CONFIG)
    assert not changed.any() and detector.compare_again(CONFIG).lag_s == 1
    # Another one waits as well, for less long; a third one is computed, and a fourth one that is not stale.
    now = put(put(put(plain(), one, 50), other, 50), late, 50)
    detector.compare(put(plain(), one, 50), 2 * SECOND_NS, CONFIG)
    change = detector.compare(now, 3 * SECOND_NS, CONFIG)
    changed = detector.settle(mask(other, SPOT), mask(one, late), change.stale, CONFIG)
    assert cells(changed) == [other] and cells(detector.deferred) == [one, late]
    again = detector.compare_again(CONFIG)
    assert cells(again.stale) == [one, late] and again.lag_s == 3
    assert cells(detector.compare(now, 4 * SECOND_NS, CONFIG).stale) == [one, late]
    changed = detector.settle(ALL, NONE, mask(one, late), CONFIG)
    assert cells(changed) == [one, late] and not detector.deferred.any()
    assert detector.compare_again(CONFIG).lag_s == 0
    assert not detector.compare(now, 5 * SECOND_NS, CONFIG).stale.any()


@pytest.mark.parametrize('refreshed', [None, mask((1, 1), (3, 4))])
def test_a_refresh_from_an_older_frame_leaves_what_changed_since_then_stale(refreshed):
    """The model computed one frame while the next ones were compared."""
    detector, both, since = plain_detector(), ((1, 1), (3, 4)), (4, 6)
    older = put(put(plain(), both[0], 50), both[1], 50)
    newest = put(put(plain(), both[0], 50), since, 50)
    detector.compare(older, SECOND_NS, CONFIG)
    seen = detector.seen
    assert cells(detector.compare(newest, 2 * SECOND_NS, CONFIG).stale) == [both[0], since]  # one has changed back
    detector.refresh(refreshed, seen)
    again = detector.compare_again(CONFIG)
    assert cells(again.stale) == [both[1], since]  # the state now shows it as it was before
    assert again.doubt_s[both[0]] == 0 < again.doubt_s[both[1]]
    assert not detector.compare(older, 3 * SECOND_NS, CONFIG).stale.any()


def test_a_second_comparison_of_the_same_frame_finds_the_same():
    detector, rgb = plain_detector(), put(plain(), (1, 1), 50)
    once, again = detector.compare(rgb, SECOND_NS, CONFIG), detector.compare_again(CONFIG)
    for name in ('difference', 'changed', 'stale', 'doubt_s'):
        assert np.array_equal(getattr(once, name), getattr(again, name))
    assert (once.scene, once.still_s, once.lag_s) == (again.scene, again.still_s, again.lag_s)


def test_the_lag_is_that_of_the_stale_cell_that_waits_longest():
    detector, first = plain_detector(), put(plain(), (1, 1), 50)
    assert detector.compare(plain(), SECOND_NS, CONFIG).lag_s == 0
    assert detector.compare(first, 2 * SECOND_NS, CONFIG).lag_s == 1
    assert detector.compare(put(first, (3, 4), 50), 5 * SECOND_NS, CONFIG).lag_s == 4
    assert detector.compare(plain(), 6 * SECOND_NS, CONFIG).lag_s == 0  # both have changed back


def test_a_scene_is_still_since_the_last_motion_whatever_is_stale():
    detector, shown = plain_detector(), put(plain(), (1, 1), 50)
    still_s = [
        detector.compare(rgb, second * SECOND_NS, CONFIG).still_s
        for second, rgb in enumerate((plain(), shown, shown, shown, plain(), plain()), 1)
    ]
    assert still_s == [1, 0, 1, 2, 0, 1]


def still_after(*pictures, detector=None, config=CONFIG):
    """How long the scene was still after each of these pictures, one a second."""
    detector = detector or plain_detector()
    return [detector.compare(rgb, number * SECOND_NS, config).still_s for number, rgb in enumerate(pictures, 1)]


def test_a_slow_motion_adds_up_until_it_is_one():
    levels = (16, 31, 32, 48, 63, 64, 64)
    coarse = CONFIG.with_values(change_threshold=32)
    rests = still_after(*(put(plain(), (1, 1), level) for level in levels), config=coarse)
    assert rests == [1, 2, 0, 1, 2, 0, 1]
    others = CONFIG.with_values(change_threshold=16)
    assert still_after(*(put(plain(), (1, 1), level) for level in levels), config=others) == [0, 1, 0, 0, 1, 0, 1]


@pytest.mark.parametrize('gain', [1.2, 1.4])
def test_a_scene_rests_whatever_the_exposure_within_its_limit(gain):
    lit = np.clip(BASE * gain, 0, 255).astype(np.uint8)
    rests = still_after(BASE, lit, BASE, lit, detector=detector_of(BASE))
    assert rests == ([1, 2, 3, 4] if gain < 1.25 else [1, 0, 0, 0])


def test_a_scene_rests_although_the_camera_is_noisy():
    pictures = [noisy(BASE, number, Sensor(8)) for number in range(1, 30)]
    rests = still_after(*pictures, detector=detector_of(noisy(BASE, 0, Sensor(8)), 17, 23))
    assert rests[-1] >= 25
    moved = noisy(brightened(BASE, 2, 3, 60), 31, Sensor(8))
    assert still_after(*pictures, moved, detector=detector_of(noisy(BASE, 0, Sensor(8)), 17, 23))[-1] == 0


def test_a_refresh_is_no_motion():
    detector, shown = plain_detector(), put(plain(), (1, 1), 50)
    detector.compare(plain(), SECOND_NS, CONFIG)
    older = detector.seen
    detector.compare(shown, 2 * SECOND_NS, CONFIG)
    assert detector.compare(shown, 3 * SECOND_NS, CONFIG).still_s == 1
    detector.refresh(None, older)
    assert detector.compare_again(CONFIG).still_s == 1 and detector.compare_again(CONFIG).stale.any()
    detector.refresh()
    assert detector.compare_again(CONFIG).still_s == 1 and not detector.compare_again(CONFIG).stale.any()


def test_a_refresh_from_an_older_frame_of_another_exposure_compensates_anew():
    """The gain of the newest frame is one over the pixels that are cached now."""
    detector, lit = detector_of(BASE), np.clip(BASE * 1.15, 0, 255).astype(np.uint8)
    detector.compare(lit, SECOND_NS, CONFIG)
    bright = detector.seen
    detector.compare(BASE, 2 * SECOND_NS, CONFIG)
    assert bright.gain == pytest.approx(1.15, abs=0.02) and detector.seen.gain == 1
    detector.refresh(None, bright)
    assert not detector.compare_again(CONFIG).stale.any() and detector.seen.stamp_ns == 2 * SECOND_NS
    assert detector.seen.gain == pytest.approx(1 / 1.15, abs=0.02)


@pytest.fixture
def one_core():
    """OpenCV on the calling thread alone, so that its time is all there is."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


def test_the_benchmark_writes_what_it_measured(one_core, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, 'GRIDS', {(160, 120): {'embedded': (3, 4)}})
    output = tmp_path / 'new' / 'change.json'
    arguments = '--pictures', '2', '--seconds', '1', '--events', '1'
    assert bench.main([*arguments, '--output', str(output)]) == 0
    result = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert list(result['change_ms_p95']) == ['160x120']
    assert result['change_ms_p95']['160x120'] == max(row['cpu_ms_p95'] for row in result['times'])
    assert [(row['size'], row['grid']) for row in result['overlay']] == [('160x120', 'embedded')]
    assert [row['situation'] for row in result['paid']] == ['still', 'flicker']
    assert all(row['events'] == 1 and row['touched'] for row in result['events'])
