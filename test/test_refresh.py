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

"""The refresh planner: cheapest level, never over budget but for the age limit, every debt paid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.change import Change, SceneChange
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.scene.refresh_plan import plan_refresh

GRID = 6, 8
CELLS = GRID[0] * GRID[1]
LIMIT_S = 10.0


def change(stale=0, doubt_s=0.0, difference=40):
    """So many stale cells, the first ones; doubt and difference for all of them, or for each."""
    which = np.arange(CELLS).reshape(GRID) < stale

    def spread(value, dtype):
        return np.where(which, np.resize(value, CELLS).reshape(GRID), 0).astype(dtype)

    return Change(spread(difference, np.uint8), which, which, spread(doubt_s, float), SceneChange.SAME)


def line(fixed, per_cell):
    """A patch takes a fixed time, and a time for each cell, in milliseconds."""
    return lambda cells: fixed + per_cell * len(cells)


EACH_CELL_MS = line(0.0, 1.0)  # then a budget in milliseconds is one in cells


def plan_of(
    stale, budget_ms=0.0, can_patch=True, doubt_s=0.0, difference=40, frame_ms=30.0, patch_ms=line(2.0, 1.0), **given
):
    config = Config(budget_ms=budget_ms, max_cell_age_s=LIMIT_S)
    shown = change(stale, doubt_s, difference)
    return plan_refresh(shown, config, can_patch=can_patch, frame_ms=frame_ms, patch_ms=patch_ms, **given)


def test_a_picture_without_stale_cells_costs_nothing():
    plan = plan_of(0)
    assert plan.level is Level.REUSE
    assert not plan.refreshed.any() and not plan.deferred.any()


def test_few_cells_are_patched_and_many_get_the_whole_picture_where_that_is_cheaper():
    assert plan_of(5).level is Level.PATCH
    assert plan_of(40).level is Level.FRAME
    assert plan_of(40, can_patch=False).level is Level.FRAME


def test_without_single_cells_a_picture_that_does_not_fit_waits_as_a_whole():
    plan = plan_of(5, budget_ms=20, can_patch=False)
    assert plan.level is Level.REUSE
    assert plan.deferred.sum() == 5
    assert plan_of(5, budget_ms=20, can_patch=False, doubt_s=LIMIT_S + 1).level is Level.FRAME


def test_what_takes_exactly_the_budget_fits():
    assert plan_of(40, budget_ms=30.0, can_patch=False).level is Level.FRAME
    assert plan_of(3, budget_ms=4.0).refreshed.sum() == 2


@pytest.mark.parametrize('budget', [1, 2, 3, 4])
def test_as_many_cells_are_computed_as_the_budget_holds(budget):
    assert plan_of(4, budget_ms=float(budget), patch_ms=EACH_CELL_MS).refreshed.sum() == budget


def test_a_level_whose_time_is_not_known_fits_every_budget():
    assert plan_of(40, budget_ms=0.5, can_patch=False, frame_ms=0.0).level is Level.FRAME
    assert plan_of(3, budget_ms=0.5, patch_ms=line(0.0, 0.0)).refreshed.sum() == 3


@pytest.mark.parametrize('budget_ms, level', [(0.0, Level.FRAME), (30.0, Level.FRAME), (29.9, Level.PATCH)])
def test_a_whole_picture_that_is_due_is_computed_as_soon_as_it_fits(budget_ms, level):
    assert plan_of(3, budget_ms=budget_ms, whole_is_due=True).level is level
    assert plan_of(0, budget_ms=budget_ms, whole_is_due=True).level is Level.REUSE


def first_paid(doubt_s, difference):
    """Which cell is refreshed where only one is."""
    plan = plan_of(len(doubt_s), budget_ms=1.0, doubt_s=doubt_s, difference=difference, patch_ms=EACH_CELL_MS)
    return np.flatnonzero(plan.refreshed).item()


@given(st.permutations(range(1, 6)))
def test_of_cells_that_show_no_difference_the_one_that_waits_longest_is_paid_first(waits_s):
    assert first_paid(waits_s, [0] * 5) == np.argmax(waits_s)


@given(st.permutations([1, 2, 40, 200, 255]))
def test_of_cells_that_have_just_changed_the_one_that_differs_most_is_paid_first(differences):
    assert first_paid([0.0] * 5, differences) == np.argmax(differences)


@given(st.floats(0.01, 0.5), st.integers(10, 120))
def test_a_cell_that_waits_ten_times_as_long_comes_before_one_that_differs_twice_as_much(wait_s, difference):
    assert first_paid([wait_s, 10 * wait_s], [2 * difference, difference]) == 1


def test_what_differs_most_and_waited_longest_is_paid_first():
    doubt_s = [0.1, 0.1, 0.1, 5.0]
    plan = plan_of(4, budget_ms=2.0, difference=[40, 200, 40, 40], doubt_s=doubt_s, patch_ms=EACH_CELL_MS)
    assert np.flatnonzero(plan.refreshed).tolist() == [1, 3]
    assert np.flatnonzero(plan.deferred).tolist() == [0, 2]


@given(
    fixed=st.floats(0, 20),
    per_cell=st.floats(0, 3),
    frame_ms=st.floats(0.1, 100),
    stale=st.integers(0, CELLS),
    budget_ms=st.floats(0.5, 60),
    can_patch=st.booleans(),
    doubt_s=st.lists(st.floats(0, 2 * LIMIT_S), min_size=1, max_size=CELLS),
)
def test_a_plan_is_within_budget_but_for_overdue_cells_and_none_of_those_waits(
    fixed, per_cell, frame_ms, stale, budget_ms, can_patch, doubt_s
):
    shown, patch_ms = change(stale, doubt_s), line(fixed, per_cell)
    plan = plan_of(stale, budget_ms, can_patch, doubt_s, frame_ms=frame_ms, patch_ms=patch_ms)
    overdue = shown.stale & (shown.doubt_s > LIMIT_S)
    expected_ms = {Level.REUSE: 0.0, Level.PATCH: patch_ms(np.flatnonzero(plan.refreshed)), Level.FRAME: frame_ms}[
        plan.level
    ]
    assert not (plan.deferred & overdue).any()
    assert not (plan.deferred & plan.refreshed).any()
    assert ((plan.deferred | plan.refreshed) >= shown.stale).all()
    if not overdue.any():
        assert expected_ms <= budget_ms
    elif plan.level is Level.PATCH and expected_ms > budget_ms:
        assert (plan.refreshed == overdue).all()  # no more than what must be


@settings(max_examples=30)
@given(budget=st.integers(1, 8), seed=st.integers(0, 1000), busy=st.integers(1, 4))
def test_every_debt_is_paid_before_its_age_limit_whatever_goes_on_changing(budget, seed, busy):
    rng, step_s = np.random.default_rng(seed), 0.1
    config = Config(budget_ms=float(budget), max_cell_age_s=2.0)
    waiting_s, stale = np.zeros(GRID), np.ones(GRID, bool)
    for _ in range(100):
        difference = np.where(stale, rng.integers(32, 256, GRID), 0).astype(np.uint8)
        shown = Change(difference, stale, stale, waiting_s * stale, SceneChange.SAME)
        plan = plan_refresh(shown, config, can_patch=True, frame_ms=1e3, patch_ms=EACH_CELL_MS)
        assert waiting_s[plan.deferred].max(initial=0) <= config.max_cell_age_s
        stale = plan.deferred.copy()
        waiting_s = np.where(stale, waiting_s + step_s, 0)
        stale.ravel()[:busy] = True  # cells that never stop changing starve nobody
    assert not stale.ravel()[busy:].any()
