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

"""The lookout: which cells of the state differ from the newest picture, whatever comes while the model computes."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene import lookout as lookouts
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.lookout import Lookout
from vlm_reuse_node.scene.refresh import Level, Totals

SECOND_NS = 1_000_000_000
CONFIG = Config()
GRID, CELL_PX = (3, 4), 28
NONE, ALL = np.zeros(GRID, bool), np.ones(GRID, bool)
ONE, OTHER, THIRD = (0, 1), (2, 3), (1, 0)


def at(second, *brighter, size=(3 * 40, 4 * 40)):
    """A grey picture, some of its cells brighter."""
    rgb = np.full((*size, 3), 90, np.uint8)
    height, width = size[0] // 3, size[1] // 4
    for row, column in brighter:
        rgb[row * height : (row + 1) * height, column * width : (column + 1) * width] += 60
    return Frame(rgb, int(second * SECOND_NS), 'front_optical', 'front')


def mask(*cells):
    chosen = NONE.copy()
    for cell in cells:
        chosen[cell] = True
    return chosen


def cells(chosen):
    return [(int(row), int(column)) for row, column in np.argwhere(chosen)]


def looked(lookout, *frames):
    for frame in frames:
        look = lookout.look(frame, CONFIG, GRID, CELL_PX)
    return look


@pytest.fixture
def lookout():
    """One whose state was computed from the picture of 0 s."""
    lookout = Lookout('front')
    assert lookout.settle(looked(lookout, at(0)), ALL, NONE, CONFIG).all()
    return lookout


def test_before_the_first_settle_there_is_no_state_whatever_is_looked_at():
    lookout = Lookout('front')
    assert lookout.newest is None and not lookout.can_look(at(0))
    for second in (0, 1, 2):
        look = looked(lookout, at(second))
        assert look is lookout.newest and look.frame.stamp_ns == second * SECOND_NS
        assert look.change is look.current is None and look.lost == 'first frame' and not look.is_restart
        assert look.stale.all() and not look.is_current and look.lag_s == 0
    assert lookout.can_look(at(3)) and not lookout.can_look(at(3, size=(90, 80)))


def test_a_state_agrees_with_the_newest_picture_that_showed_no_change(lookout):
    frames = [at(1), at(2), at(3, ONE)]
    looks = [looked(lookout, frame) for frame in frames]
    assert [look.current for look in looks] == [frames[0], frames[1], frames[1]]
    assert [look.is_current for look in looks] == [True, True, False]
    assert [look.lag_s for look in looks] == [0, 0, 1] and cells(looks[2].stale) == [ONE]
    assert looked(lookout, at(4)).is_current  # it has changed back


@pytest.mark.parametrize('refreshed', [ALL, mask(ONE)])
def test_a_refresh_makes_the_state_agree_with_its_picture(lookout, refreshed):
    frame = at(2, ONE)
    look = looked(lookout, at(1), frame)
    assert cells(lookout.settle(look, refreshed, NONE, CONFIG)) == [ONE]
    newest = lookout.newest
    assert newest.frame is newest.current is frame and newest.is_current and newest.lag_s == 0
    assert (newest.computed_ns == np.where(refreshed, 2 * SECOND_NS, 0)).all()
    assert look.stale[ONE]  # an earlier look stays as it was


def test_what_was_not_refreshed_stays_stale_and_what_was_deferred_too(lookout):
    look = looked(lookout, at(1), at(2, ONE, OTHER))
    lookout.settle(look, mask(ONE), mask(OTHER), CONFIG)
    newest = lookout.newest
    assert cells(newest.stale) == [OTHER] and newest.lag_s == 1 and not newest.is_current
    assert newest.current.stamp_ns == SECOND_NS  # the state is of two pictures, and agrees with neither of the newer
    assert cells(looked(lookout, at(3, ONE)).stale) == [OTHER]  # although it has changed back


@pytest.mark.parametrize('refreshed', [ALL, mask(ONE)])
def test_a_refresh_that_ends_after_a_newer_picture_is_one_of_its_own_picture(lookout, refreshed):
    older, newer = at(1, ONE), at(2, ONE, OTHER)
    look = looked(lookout, older)
    looked(lookout, newer)
    assert cells(lookout.settle(look, refreshed, NONE, CONFIG)) == [ONE]
    newest = lookout.newest
    assert newest.frame is newer and newest.current is older
    assert cells(newest.stale) == [OTHER] and newest.lag_s == 1
    assert (newest.computed_ns == np.where(refreshed, SECOND_NS, 0)).all()
    back = looked(lookout, at(3, ONE))
    assert back.is_current and back.current.stamp_ns == 3 * SECOND_NS


def test_a_refresh_whose_cell_changed_back_meanwhile_has_made_it_stale(lookout):
    look = looked(lookout, at(1, ONE))
    assert looked(lookout, at(2)).is_current
    lookout.settle(look, ALL, NONE, CONFIG)
    assert cells(lookout.newest.stale) == [ONE] and lookout.newest.lag_s == 1


def test_a_first_refresh_that_ends_after_a_newer_picture_leaves_what_differs():
    lookout = Lookout('front')
    look = looked(lookout, at(0, ONE))
    looked(lookout, at(1, OTHER))
    assert lookout.settle(look, ALL, NONE, CONFIG).all()
    assert cells(lookout.newest.stale) == [ONE, OTHER] and not lookout.newest.lost


@pytest.mark.parametrize('newer', [at(2, size=(90, 80)), at(-2)])
def test_a_refresh_that_ends_after_a_restart_counts_for_nothing(lookout, newer):
    look = looked(lookout, at(1, ONE))
    restart = looked(lookout, newer)
    assert restart.is_restart and restart.change is restart.current is None and restart.stale.all()
    lookout.settle(look, ALL, NONE, CONFIG)
    assert lookout.newest is restart
    lookout.settle(restart, ALL, NONE, CONFIG)
    newest = lookout.newest
    assert newest.is_current and not newest.is_restart and newest.current is newer
    assert (newest.computed_ns == newer.stamp_ns).all()


@pytest.mark.parametrize('newer, why', [(at(2, size=(90, 80)), 'size changed'), (at(-2), 'time went back')])
def test_a_restart_lasts_until_all_cells_are_computed(lookout, newer, why):
    looked(lookout, newer)
    later = looked(lookout, Frame(newer.rgb, newer.stamp_ns + SECOND_NS))
    assert later.is_restart and later.lost.startswith(why) and later.change is None
    lookout.lose('the last refresh was interrupted')
    assert lookout.newest.is_restart and lookout.newest.lost == 'the last refresh was interrupted'


@pytest.mark.parametrize('back_ns', [1, SECOND_NS // 2, SECOND_NS, SECOND_NS + 1])
def test_a_small_step_back_is_skipped_and_a_larger_one_is_a_restart(lookout, back_ns):
    newest = looked(lookout, at(5))
    look = looked(lookout, Frame(at(0, ONE).rgb, 5 * SECOND_NS - back_ns))
    if back_ns > SECOND_NS:
        assert look is lookout.newest and look.lost == 'time went back'
    else:
        assert look is None and lookout.newest is newest
        assert looked(lookout, at(5)).is_current  # the same stamp again is no step back


def test_a_state_that_was_lost_makes_every_cell_stale_until_it_is_computed(lookout):
    looked(lookout, at(1, ONE))
    lookout.lose('the state was lost')
    assert lookout.newest.stale.all() and not lookout.newest.is_restart and lookout.newest.frame.stamp_ns == SECOND_NS
    look = looked(lookout, at(2))  # it shows what the lost state did
    assert look.stale.all() and look.current is None and look.lost == 'the state was lost'
    assert lookout.settle(look, ALL, NONE, CONFIG).all()
    assert lookout.newest.is_current and lookout.newest.lost == ''


def test_a_reset_forgets_the_pictures_and_a_refresh_of_them(lookout):
    look = looked(lookout, at(1, ONE))
    lookout.reset()
    assert lookout.newest is None and not lookout.can_look(at(2))
    lookout.settle(look, ALL, NONE, CONFIG)
    assert lookout.newest is None
    lookout.lose('the state was lost')
    assert lookout.newest is None
    lookout.reset()
    assert looked(lookout, at(-9)).lost == 'first frame' and not lookout.newest.is_restart


def test_a_reset_ends_a_restart(lookout):
    assert looked(lookout, at(-9)).is_restart
    lookout.reset()
    assert not looked(lookout, at(-9)).is_restart


def test_a_state_that_was_lost_is_not_back_before_all_its_cells_are(lookout):
    lookout.lose('the state was lost')
    lookout.settle(looked(lookout, at(1)), ~mask(ONE), NONE, CONFIG)
    assert lookout.newest.lost == 'the state was lost' and lookout.newest.stale.all()
    lookout.settle(lookout.newest, ALL, NONE, CONFIG)
    assert lookout.newest.is_current


def test_a_picture_of_another_size_needs_its_grid(lookout):
    newest, other = lookout.newest, at(2, size=(90, 80))
    assert lookout.look(other, CONFIG) is None and lookout.newest is newest
    assert lookout.look(other, CONFIG, (3, 5), CELL_PX).computed_ns.shape == (3, 5)
    assert lookout.newest.cells == 15 and newest.cells == 12
    assert lookout.look(at(0, size=(90, 80)), CONFIG).computed_ns.shape == (3, 5)  # the grid is known


def test_a_period_is_the_time_between_the_last_two_pictures(lookout):
    assert lookout.newest.period_s == 0
    for second, period_s in ((1, 1), (1.5, 0.5), (1.5, 0), (4, 2.5)):
        look = looked(lookout, at(second, ONE))
        assert look.period_s == period_s
    lookout.settle(look, ALL, NONE, CONFIG)
    assert lookout.newest.period_s == 2.5
    lookout.lose('the state was lost')
    assert lookout.newest.period_s == 2.5 and looked(lookout, at(4.25)).period_s == 0.25
    assert looked(lookout, at(-4)).period_s == 0 and looked(lookout, at(-3)).period_s == 1


def test_a_cut_of_the_scene_is_told(lookout):
    other = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    looks = [
        looked(lookout, at(1)),
        looked(lookout, at(2, ONE)),
        looked(lookout, Frame(other, 3 * SECOND_NS)),
    ]
    assert [look.was_cut for look in looks] == [False, False, True]
    lookout.lose('the state was lost')
    assert not lookout.newest.was_cut


def test_a_comparison_tells_its_time(lookout, monkeypatch):
    ticks = iter(range(5, 100, 3))
    monkeypatch.setattr(lookouts, 'time', SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert looked(lookout, at(1)).change_ms == 3000.0
    lookout.settle(lookout.newest, ALL, NONE, CONFIG)
    assert lookout.newest.change_ms == 3000.0
    lookout.lose('the state was lost')
    assert lookout.newest.change_ms == 0.0


def test_what_is_over_budget_is_told_and_the_oldest_cell_too(lookout):
    look = looked(lookout, at(1, ONE, OTHER))
    assert look.record(Totals()).reason == '2 of 12 cells are stale'
    lookout.settle(look, mask(ONE), mask(OTHER), CONFIG)
    record = looked(lookout, at(3, ONE, OTHER)).record(Totals())
    assert record.reason == '1 of 12 cells are stale, over budget' and record.oldest_cell_age_s == 3
    lookout.settle(lookout.newest, mask(OTHER), NONE, CONFIG)
    record = looked(lookout, at(4, ONE, OTHER)).record(Totals())
    assert record.reason == 'no cell changed' and record.oldest_cell_age_s == 4
    lookout.lose('the state was lost')
    assert lookout.newest.record(Totals()).oldest_cell_age_s == 0


def test_the_record_of_a_look_says_what_it_found(lookout):
    looked(lookout, at(1))
    totals = Totals(3.0, 4.0, 5.0)
    record = looked(lookout, at(3, ONE, OTHER)).record(totals)
    assert (record.camera, record.stamp_ns, record.frame_id) == ('front', 3 * SECOND_NS, 'front_optical')
    assert record.level == Level.REUSE and record.reason == '2 of 12 cells are stale' and record.totals is totals
    assert cells(record.stale) == cells(record.changed) == [ONE, OTHER] and not record.refreshed.any()
    assert record.lag_s == 2 and record.oldest_cell_age_s == 3 and record.spent_ms == record.change_ms > 0


def test_cells_that_wait_for_the_budget_are_not_told_as_changed_again(lookout):
    look = looked(lookout, at(1, ONE))
    lookout.settle(look, NONE, mask(ONE), CONFIG)
    record = looked(lookout, at(2, ONE, OTHER)).record(Totals())
    assert cells(record.stale) == [ONE, OTHER] and cells(record.changed) == [OTHER]


def test_a_refresh_that_another_size_has_overtaken_leaves_stale_what_it_did_not_compute(lookout):
    look = looked(lookout, at(1, ONE))
    newer = lookout.look(at(2, size=(90, 80)), CONFIG, (3, 5), CELL_PX)
    record = look.refreshed(newer, Totals(), Level.PATCH, '', mask(ONE), mask(ONE))
    assert (record.stale == ~mask(ONE)).all() and record.stamp_ns == SECOND_NS and record.lag_s == 0


def test_two_threads_may_look_and_settle():
    """Pictures of two sizes come while others are computed; what is known is whole at every moment."""
    lookout, failures, done = Lookout(), [], threading.Event()
    sizes, grids = ((120, 160), (90, 80)), ((3, 4), (3, 5))
    turn = np.random.default_rng(0).integers(0, 2, 400)

    def check(look):
        shape = grids[sizes.index(look.frame.size)]
        assert look.stale.shape == look.computed_ns.shape == shape
        assert look.change is None or look.change.difference.shape == look.change.doubt_s.shape == shape
        assert (look.current is None) == (look.change is None) and (look.change is None) == bool(look.lost)
        assert look.current is None or look.current.size == look.frame.size
        assert look.record(Totals()).visual_tokens_total == shape[0] * shape[1]

    def guarded(function):
        def run():
            try:
                function()
            except BaseException as error:
                failures.append(error)
            finally:
                done.set()

        return threading.Thread(target=run)

    def look_on():
        for number in range(400):
            size = number // 40 % 2
            rgb = np.full((*sizes[size], 3), 100 * turn[number], np.uint8)
            check(lookout.look(Frame(rgb, number * SECOND_NS // 10), CONFIG, grids[size], CELL_PX))

    def settle_on():
        while not done.is_set():
            if (look := lookout.newest) is not None:
                shape, everything = look.stale.shape, np.ones(look.stale.shape, bool)
                part = everything if look.change is None else look.stale & (np.indices(shape).sum(axis=0) % 2 == 0)
                assert lookout.settle(look, part, np.zeros(shape, bool), CONFIG).shape == shape
                check(lookout.newest)

    threads = [guarded(look_on), guarded(settle_on)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert lookout.newest.frame.stamp_ns == 399 * SECOND_NS // 10
