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

"""The count of the model's work, and what each kind of step is expected to take."""

import numpy as np
import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is missing: pip install hypothesis')
from functools import partial

from hypothesis import given
from hypothesis import strategies as st
from tiny_model import picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.work import Cost, Meter, Work
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.state import build


def counts(work):
    return work.vision_tokens, work.prefill_tokens, work.decode_tokens


WORKS = st.builds(Work, *3 * [st.integers(0, 1000)], st.integers(0, 1000).map(float))


@given(WORKS, WORKS)
def test_work_adds_up_and_what_was_done_between_two_readings_is_their_difference(before, step):
    after = before + step
    assert after.tokens == before.tokens + step.tokens and after.ms == before.ms + step.ms
    assert after - before == step and before - before == Work()
    assert step.tokens == step.vision_tokens + step.prefill_tokens + step.decode_tokens


@given(fixed=st.floats(0, 50), per_token=st.floats(0, 5), seen=st.lists(st.integers(1, 200), min_size=2, max_size=50))
def test_a_cost_that_is_a_line_is_learnt_as_far_as_it_was_seen(fixed, per_token, seen):
    cost = Cost()
    for tokens in seen:
        cost.learn(tokens, fixed + per_token * tokens)
    for tokens in (min(seen[1:]), max(seen[1:])):  # the first was only used until the second
        assert cost.ms(tokens) == pytest.approx(fixed + per_token * tokens, rel=0.02, abs=0.1)


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1000)), min_size=1, max_size=30))
def test_more_tokens_never_cost_less(steps):
    cost = Cost()
    for tokens, ms in steps:
        cost.learn(tokens, ms)
    expected = [cost.ms(tokens) for tokens in range(0, 200, 20)]
    assert all(0 <= fewer <= more + 1e-9 for fewer, more in zip(expected, expected[1:]))


@given(st.integers(1, 400), st.floats(0.1, 1000))
def test_the_first_step_is_taken_as_it_is(tokens, ms):
    cost = Cost()
    with np.errstate(all='raise'):
        assert not cost.is_known and cost.ms(tokens) == 0
        cost.learn(tokens, ms)
        assert cost.is_known and cost.ms(tokens) == pytest.approx(ms)


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0.1, 1000)), min_size=2, max_size=10), st.floats(0.1, 1e5))
def test_the_first_step_which_may_compile_kernels_is_forgotten_with_the_second(steps, first_ms):
    with_first, with_another = Cost(), Cost()
    for cost, ms in ((with_first, first_ms), (with_another, 2 * first_ms)):
        cost.learn(7, ms)
        for step in steps:
            cost.learn(*step)
    assert [with_first.ms(tokens) for tokens in (1, 7, 200)] == [with_another.ms(tokens) for tokens in (1, 7, 200)]


def after_two_steps_of_5_ms(tokens, *times):
    """A cost for each of `times`: it has learnt two steps of 5 ms, and then one that took so many times as long."""
    costs = [Cost() for _ in times]
    for cost, last in zip(costs, times):
        for ms in (5.0, 5.0, last * 5.0):
            cost.learn(tokens, ms)
    return costs


@given(tokens=st.integers(1, 400), held_up=st.floats(20, 1e4))
def test_a_step_that_was_held_up_counts_the_same_however_long_it_was(tokens, held_up):
    costs = after_two_steps_of_5_ms(tokens, 20, held_up)
    assert costs[0].ms(tokens) == pytest.approx(costs[1].ms(tokens))


@given(tokens=st.integers(1, 400), times=st.floats(3, 1e4))
def test_a_step_counts_as_three_times_what_was_expected_at_most(tokens, times):
    costs = after_two_steps_of_5_ms(tokens, 3, times)
    assert costs[0].ms(tokens) == pytest.approx(costs[1].ms(tokens))
    assert costs[0].ms(tokens) == pytest.approx((0.95 * 5 + 15) / 1.95)


@pytest.mark.parametrize('more', [0, 1])
def test_steps_of_hardly_different_size_do_not_tell_what_a_token_takes(more):
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


def test_one_step_that_was_held_up_hardly_changes_what_is_expected():
    cost = Cost()
    for tokens in (1, 1, 4, 16):
        cost.learn(tokens, 2.0 + tokens)
    before = cost.ms(8)
    cost.learn(4, 5000.0)
    assert before < cost.ms(8) < 2 * before


def test_a_picture_is_expected_to_take_what_those_of_its_size_took():
    meter = Meter()
    for cost in (meter.see, meter.read):
        for tokens, ms in ((400, 50.0), (400, 50.0), (100, 15.0)):  # the camera's pictures became smaller
            cost.learn(tokens, ms)
    assert meter.frame(100, 100).ms == pytest.approx(2 * 15.0, rel=1e-6)
    assert counts(meter.frame(100, 110)) == (100, 110, 0)


def test_until_a_patch_was_measured_a_cell_is_taken_for_its_share_of_the_picture():
    meter = Meter()
    assert counts(meter.patch(3, 12, 14)) == (3, 5, 0)  # and the two tokens around the picture's cells
    assert meter.patch(3, 12, 14).ms == meter.frame(12, 14).ms == 0  # nothing is known
    meter.see.learn(12, 24.0)
    meter.read.learn(14, 36.0)
    assert meter.patch(3, 12, 14).ms == pytest.approx(60.0 * 3 / 12)
    meter.see_cells.learn(3, 5.0)
    assert meter.patch(3, 12, 14).ms == pytest.approx(5.0 + meter.read.ms(3 + 2))


@pytest.mark.parametrize('choices', [(), ('red', 'green circle', 'no')])
@pytest.mark.parametrize('branches', [True, False])
def test_the_meter_counts_every_token_of_an_answer_from_nothing(vlm, monkeypatch, choices, branches):
    monkeypatch.setattr(vlm.family, 'branches', branches)
    session = SceneSession(vlm, Config())
    session.look(picture(1))
    before = vlm.meter.done
    answer = session.ask(Question('what color is the square ?', choices, max_tokens=5), now_ns=0)
    spent = vlm.meter.done - before
    decoded = 0 if choices else answer.tokens_generated - (answer.tokens_generated == 5)  # the last is not read again
    assert (spent.vision_tokens, spent.prefill_tokens, spent.decode_tokens) == (12, answer.tokens_prefilled, decoded)
    assert 0 < spent.ms < answer.total_ms


def test_the_meter_counts_a_patch_and_what_it_computes_behind_it(vlm):
    state = build(vlm, partial(vlm.template, ''), [EncodedFrame.see(vlm, picture(1), keep=True)])
    newer, cells, before = picture(2), np.array([2, 3]), vlm.meter.done
    paid = state.rewrite(state.live.with_cells(vlm, newer, cells), cells)
    spent = vlm.meter.done - before
    assert spent.vision_tokens == 2 and spent.prefill_tokens >= paid > 2 and spent.decode_tokens == 0


def test_a_step_that_fails_counts_too(vlm, monkeypatch):
    def failing(*args, **kwargs):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(vlm.family, 'forward', failing)
    before = vlm.meter.done
    with pytest.raises(RuntimeError):
        vlm.read(vlm.new_cache(), [1, 2, 3], 0)
    assert (vlm.meter.done - before).prefill_tokens == 3
