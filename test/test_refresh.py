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
from vlm_reuse_node.scene.refresh_plan import Cost, RefreshPlanner

GRID = 6, 8
CELLS = GRID[0] * GRID[1]
LIMIT_S = 10.0


def change(stale=0, doubt_s=0.0, difference=40):
    """So many stale cells, the first ones; doubt and difference for all of them, or for each."""
    which = np.arange(CELLS).reshape(GRID) < stale

    def spread(value, dtype):
        return np.where(which, np.resize(value, CELLS).reshape(GRID), 0).astype(dtype)

    return Change(spread(difference, np.uint8), which, which, spread(doubt_s, float), SceneChange.SAME)


def expected_ms(learnt, plan):
    """What the costs so far let expect of a plan."""
    cells = int(plan.refreshed.sum())
    if plan.level is Level.FRAME:
        return learnt._frame_ms(CELLS)
    return learnt._patch_ms(cells, plan.refreshed.size) if cells else 0.0


def planner(fixed=2.0, per_cell=1.0, frame=30.0):
    """One that has learnt these costs, in milliseconds."""
    learnt = RefreshPlanner()
    for cells in (1, 1, 4, 16):
        learnt.learn(Level.PATCH, cells, fixed + per_cell * cells)
    learnt.learn(Level.FRAME, CELLS, frame)
    return learnt


def plan_of(stale, budget_ms=0.0, budget_tokens=0, can_patch=True, doubt_s=0.0, learnt=None, difference=40):
    config = Config(budget_ms=budget_ms, budget_tokens=budget_tokens, max_cell_age_s=LIMIT_S)
    return (learnt or planner()).plan(change(stale, doubt_s, difference), config, can_patch)


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
    whole = RefreshPlanner()
    whole.learn(Level.FRAME, CELLS, 30.0)
    assert plan_of(40, budget_ms=30.0, can_patch=False, learnt=whole).level is Level.FRAME
    # Where no patch was seen yet, a cell is taken for its share of the picture.
    assert plan_of(3, budget_ms=2 * 30.0 / CELLS, learnt=whole).refreshed.sum() == 2


@pytest.mark.parametrize('budget_tokens', [1, 2, 3, 4])
def test_as_many_cells_are_computed_as_the_budget_holds(budget_tokens):
    assert plan_of(4, budget_tokens=budget_tokens).refreshed.sum() == budget_tokens


def test_what_a_whole_picture_takes_is_not_known_before_the_first_so_that_it_fits_every_budget():
    assert plan_of(40, budget_ms=0.5, can_patch=False, learnt=RefreshPlanner()).level is Level.FRAME


def test_a_whole_picture_is_expected_to_take_what_those_of_its_size_took():
    learnt = RefreshPlanner()
    for cells, ms in ((4 * CELLS, 100.0), (CELLS, 30.0)):  # the camera's pictures became smaller
        learnt.learn(Level.FRAME, cells, ms)
    assert plan_of(40, budget_ms=30.1, can_patch=False, learnt=learnt).level is Level.FRAME
    assert plan_of(40, budget_ms=29.9, can_patch=False, learnt=learnt).level is Level.REUSE


def first_paid(doubt_s, difference):
    """Which cell is refreshed where only one is."""
    plan = plan_of(len(doubt_s), budget_tokens=1, doubt_s=doubt_s, difference=difference)
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
    plan = plan_of(4, budget_tokens=2, difference=[40, 200, 40, 40], doubt_s=[0.1, 0.1, 0.1, 5.0])
    assert np.flatnonzero(plan.refreshed).tolist() == [1, 3]
    assert np.flatnonzero(plan.deferred).tolist() == [0, 2]


def test_a_level_that_was_never_used_is_tried_and_then_known():
    new = RefreshPlanner()
    assert plan_of(3, budget_ms=1.0, learnt=new).refreshed.any()
    new.learn(Level.FRAME, CELLS, 48.0)
    assert plan_of(3, budget_ms=2.5, learnt=new).refreshed.sum() == 2  # a cell is taken for its share of the picture
    new.learn(Level.PATCH, 2, 2000.0)  # kernels were compiled
    assert plan_of(3, budget_ms=2.5, learnt=new).refreshed.sum() == 2
    new.learn(Level.PATCH, 2, 10.0)
    assert not plan_of(3, budget_ms=2.5, learnt=new).refreshed.any()


@given(
    fixed=st.floats(0, 20),
    per_cell=st.floats(0, 3),
    frame=st.floats(0.1, 100),
    stale=st.integers(0, CELLS),
    budget_ms=st.floats(0.5, 60),
    budget_tokens=st.integers(0, CELLS),
    can_patch=st.booleans(),
    doubt_s=st.lists(st.floats(0, 2 * LIMIT_S), min_size=1, max_size=CELLS),
)
def test_a_plan_is_within_budget_but_for_overdue_cells_and_none_of_those_waits(
    fixed, per_cell, frame, stale, budget_ms, budget_tokens, can_patch, doubt_s
):
    shown = change(stale, doubt_s)
    learnt = planner(fixed, per_cell, frame)
    plan = plan_of(stale, budget_ms, budget_tokens, can_patch, doubt_s, learnt)
    overdue = shown.stale & (shown.doubt_s > LIMIT_S)
    assert not (plan.deferred & overdue).any()
    assert not (plan.deferred & plan.refreshed).any()
    assert ((plan.deferred | plan.refreshed) >= shown.stale).all()
    if not overdue.any():
        assert expected_ms(learnt, plan) <= budget_ms
        assert plan.refreshed.sum() <= (budget_tokens or CELLS)
    elif plan.level is Level.PATCH and expected_ms(learnt, plan) > budget_ms + 1e-6:
        assert (plan.refreshed == overdue).all()  # no more than what must be


@settings(max_examples=30)
@given(budget_tokens=st.integers(1, 8), seed=st.integers(0, 1000), busy=st.integers(1, 4))
def test_every_debt_is_paid_before_its_age_limit_whatever_goes_on_changing(budget_tokens, seed, busy):
    rng, step_s = np.random.default_rng(seed), 0.1
    config = Config(budget_tokens=budget_tokens, max_cell_age_s=2.0)
    learnt, waiting_s = planner(frame=1e3), np.zeros(GRID)
    stale = np.ones(GRID, bool)
    for _ in range(100):
        difference = np.where(stale, rng.integers(32, 256, GRID), 0).astype(np.uint8)
        plan = learnt.plan(Change(difference, stale, stale, waiting_s * stale, SceneChange.SAME), config, True)
        assert waiting_s[plan.deferred].max(initial=0) <= config.max_cell_age_s
        stale = plan.deferred.copy()
        waiting_s = np.where(stale, waiting_s + step_s, 0)
        stale.ravel()[:busy] = True  # cells that never stop changing starve nobody
    assert not stale.ravel()[busy:].any()


@given(fixed=st.floats(0, 50), per_cell=st.floats(0, 5), seen=st.lists(st.integers(1, 200), min_size=2, max_size=50))
def test_a_cost_that_is_a_line_is_learnt_as_far_as_it_was_seen(fixed, per_cell, seen):
    cost = Cost()
    for cells in seen:
        cost.learn(cells, fixed + per_cell * cells)
    for cells in (min(seen), max(seen)):
        assert cost.ms(cells) == pytest.approx(fixed + per_cell * cells, rel=0.02, abs=0.1)


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1000)), min_size=1, max_size=30))
def test_more_cells_never_cost_less(refreshes):
    cost = Cost()
    for cells, ms in refreshes:
        cost.learn(cells, ms)
    expected = [cost.ms(cells) for cells in range(0, 200, 20)]
    assert all(0 <= fewer <= more + 1e-9 for fewer, more in zip(expected, expected[1:]))


@given(st.integers(1, 400), st.floats(0.1, 1000))
def test_the_first_refresh_is_taken_as_it_is(cells, ms):
    cost = Cost()
    with np.errstate(all='raise'):
        cost.learn(cells, ms)
        assert cost.ms(cells) == pytest.approx(ms)


@given(cells=st.integers(1, 400), held_up=st.floats(20, 1e4))
def test_a_refresh_that_was_held_up_counts_the_same_however_long_it_was(cells, held_up):
    costs = Cost(), Cost()
    for cost, times in zip(costs, (20, held_up)):
        cost.learn(cells, 5.0)
        cost.learn(cells, times * 5.0)
    assert costs[0].ms(cells) == pytest.approx(costs[1].ms(cells))


@pytest.mark.parametrize('more', [0, 1])
def test_refreshes_of_hardly_different_size_do_not_tell_what_a_cell_takes(more):
    cost, rng = Cost(), np.random.default_rng(0)
    for number in range(100):
        cost.learn(4000 + number % 2 * more, rng.uniform(20, 40))
    assert cost.ms(1) == cost.ms(4000)


@pytest.mark.parametrize('slower', [3, 30])
def test_a_cost_follows_a_machine_that_gets_slower(slower):
    cost = Cost()
    for times in (1, slower):
        for _ in range(100):
            cost.learn(10, 20.0 * times)
    assert cost.ms(10) == pytest.approx(20 * slower, rel=0.05)


def test_one_refresh_that_was_held_up_does_not_stop_the_next_ones():
    learnt = planner()
    before = plan_of(8, budget_ms=12, learnt=learnt).refreshed.sum()
    learnt.learn(Level.PATCH, 4, 5000.0)
    assert plan_of(8, budget_ms=12, learnt=learnt).refreshed.sum() >= before - 2 > 0
