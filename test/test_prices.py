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

"""What a refresh is expected to take: never fewer tokens than it takes, whatever state and pictures it meets."""

import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is missing: pip install hypothesis')
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import SECOND_NS, picture
from tiny_qwen3 import write_tiny_qwen3

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.families.sparse_vision import padded, padded_length
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.model.vlm import go_on
from vlm_reuse_node.model.work import Meter, Work
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.prices import Prices
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Halt

CELLS, SYSTEM, BETWEEN = 12, 9, 5
PATCH = Config(refresh_policy='patch', max_patch_share=1.0)
HISTORY = Config(history_frames=3, keyframe_interval_s=0.0)


def at(stamp_s, cells=0, by=0x60, top=0):
    """The first picture at a time, the first cells of a row others."""
    rgb = picture(1).rgb.copy()
    rgb[top : top + 40, : 40 * cells] ^= by
    return replace(picture(1), rgb=rgb, stamp_ns=int(stamp_s * SECOND_NS))


class Priced:
    """A session whose refreshes are compared with what was expected of them."""

    def __init__(self, vlm, config):
        self.vlm, self.session, self.stamp_s = vlm, SceneSession(vlm, config), 0.0
        self.refresher = self.session._refresher

    def look(self, frame, step_s=1.0):
        self.stamp_s += step_s
        return self.session.look(replace(frame, stamp_ns=round(self.stamp_s * SECOND_NS)))

    def refresh(self, may_patch=False, check=go_on):
        """Returns the record, what was expected and what was spent."""
        config, before = self.session.config, self.vlm.meter.done
        expected = self.refresher.expected(config, may_patch)
        try:
            record = self.refresher.refresh(config, may_patch=may_patch, check=check)
        except Halt:
            record = None
        return record, expected, self.vlm.meter.done - before

    def sees(self, frame, **given):
        self.look(frame)
        return self.refresh(**given)


def counts(work):
    return work.vision_tokens, work.prefill_tokens, work.decode_tokens


def stopping_at(count):
    calls = iter(range(count))

    def check():
        if next(calls, None) is None:
            raise Halt(Status.CANCELLED, 'enough')

    return check


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_a_refresh_takes_no_more_tokens_than_were_expected(vlm, seed):
    """After any pictures, sizes, interrupted refreshes, lost states, rollovers and new parameters."""
    compare_refreshes(vlm, Random(seed))


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_a_refresh_of_a_recurrent_model_takes_no_more_tokens_than_were_expected(recurrent, seed):
    compare_refreshes(recurrent, Random(seed))


@pytest.fixture(scope='module')
def recurrent(tmp_path_factory):
    """A model whose patches go back to a checkpoint."""
    return load(str(write_tiny_qwen3(tmp_path_factory.mktemp('models') / 'qwen3_5', 'qwen3_5')))


def compare_refreshes(vlm, random):
    """Hold every refresh of a session to what was expected of it."""
    config = Config(
        refresh_policy=random.choice(['exact', 'patch']),
        history_frames=random.choice([0, 1, 3, 5]),
        keyframe_interval_s=random.choice([0.0, 1.0]),
        upkeep_share=random.choice([0.0, 1.0]),
        max_patch_share=random.choice([0.25, 1.0]),
        max_patches=random.choice([2, 8]),
        max_cell_age_s=random.choice([2.0, 10.0]),
        system_prompt=random.choice(['', 'you are a helpful robot and see a table . please describe it .']),
    )
    priced = Priced(vlm, config)
    for _ in range(random.randint(1, 14)):
        frame = at(0, random.randint(0, 4), top=random.choice([0, 200, 440]))
        if random.random() < 0.1:
            frame = picture(random.randint(2, 3), size=random.choice([(480, 640), (320, 320), (160, 640)]))
        priced.look(frame, random.choice([0.1, 0.5, 2.0]) if random.random() < 0.95 else -5.0)
        if random.random() < 0.1:
            priced.refresher.drop_state()
        if random.random() < 0.1:
            priced.session.config = priced.session.config.with_values(history_frames=random.choice([0, 1, 3]))
        may_patch = config.refresh_policy == 'patch' and random.random() < 0.8
        check = stopping_at(random.randint(0, 3)) if random.random() < 0.1 else go_on
        _, expected, spent = priced.refresh(may_patch, check)
        assert spent.tokens <= expected.tokens and spent.vision_tokens <= expected.vision_tokens
        for _ in range(random.choice([0, 0, 3])):
            expected, before = priced.refresher.rollover_work, vlm.meter.done
            priced.refresher.step_rollover(go_on)
            assert (vlm.meter.done - before).tokens <= (expected or Work()).tokens


def test_a_frame_is_expected_to_take_what_it_takes(vlm):
    """From nothing by the text of its chat and its cells; then in the place of the live frame."""
    priced = Priced(vlm, Config())
    for number in range(3):
        record, expected, spent = priced.sees(picture(number))
        assert record.level == (Level.FRAME if number else Level.FULL)
        assert counts(expected) == counts(spent) == (12, 25, 0)


def test_a_frame_behind_keyframes_is_expected_to_take_its_own_slot(vlm):
    priced = Priced(vlm, HISTORY)
    works = [priced.sees(picture(number))[1:] for number in range(6)]
    for expected, spent in works:
        assert counts(expected)[0] == counts(spent)[0] == 12
    prefilled = [spent.prefill_tokens for _, spent in works]
    assert prefilled == [25, *5 * [14]] and prefilled[2:] == [expected.prefill_tokens for expected, _ in works[2:]]


def test_a_patch_is_expected_to_take_its_cells_and_what_is_behind_them(vlm):
    priced = Priced(vlm, PATCH)
    priced.sees(at(0))
    for cells in (1, 8, 12, 3):
        record, expected, spent = priced.sees(at(0, cells), may_patch=True)
        assert record.level == Level.PATCH and expected.vision_tokens == spent.vision_tokens
        assert spent.prefill_tokens <= expected.prefill_tokens <= 25
    assert priced.refresh(may_patch=True)[1:] == (Work(), Work())


def test_a_cut_of_the_scene_keeps_no_patched_frame_and_that_is_expected(vlm):
    priced = Priced(vlm, HISTORY.with_values(refresh_policy='patch', max_patch_share=0.5, keyframe_interval_s=1000.0))
    priced.sees(at(0))
    priced.sees(at(0, 10), may_patch=True)
    assert priced.sees(at(0, 4), may_patch=True)[0].level == Level.PATCH
    record, expected, spent = priced.sees(picture(9), may_patch=True)
    assert record.level == Level.FRAME and record.reason == 'the scene was cut'
    assert spent.vision_tokens == expected.vision_tokens == 12 and spent.tokens <= expected.tokens


def test_a_rollover_is_expected_to_take_what_it_takes(vlm):
    priced, works = Priced(vlm, HISTORY), []
    for number in range(6):
        priced.sees(picture(number))
    expected, before = priced.refresher.rollover_work, vlm.meter.done
    while (work := priced.refresher.rollover_work) is not None:
        works.append(work.tokens)
        priced.refresher.step_rollover(go_on)
    assert works == [25 + 14, 14] and counts(vlm.meter.done - before) == counts(expected) == (0, 39, 0)


class State:
    """Frames, and the tokens that they and the text around them take. more: tokens of each frame beside its cells."""

    def __init__(self, frames, more=0, has_live=True):
        self.frames = [SimpleNamespace(grid=SimpleNamespace(cells=CELLS)) for _ in range(frames)]
        self.has_live = has_live
        self.tokens = text(frames) + frames * (CELLS + more)

    def restart(self, cell):
        """Its cells are computed in place."""


def text(frames):
    """Tokens of the prompt without those of the frames."""
    return SYSTEM + BETWEEN * (frames - 1) if frames else 0


@pytest.fixture
def prices():
    """Prices of a model that takes 2 ms for a cell and 3 ms for a token that it reads."""
    meter = Meter()
    for count in (1, 1, 1000):
        meter.see.learn(count, 2.0 * count)
        meter.read.learn(count, 3.0 * count)
    template_for = {n: SimpleNamespace(prefix=[0] * (text(n) + n)) for n in range(1, 20)}.__getitem__
    return Prices(SimpleNamespace(meter=meter), template_for)


def is_about(work, vision, prefill):
    """Whether a work has these counts, and about their time."""
    ms = pytest.approx(2.0 * vision + 3.0 * prefill, rel=1e-6)
    return counts(work) == (vision, prefill, 0) and work.ms == ms


@pytest.mark.parametrize('more', [0, 2, 7])
def test_a_slot_costs_its_cells_the_tokens_around_them_and_the_text_before_it(prices, more):
    """more: a model may put tokens before, between and behind a picture's cells."""
    slot = CELLS + more
    assert is_about(prices.frame(None, CELLS), CELLS, CELLS + SYSTEM)
    assert is_about(prices.frame(State(0, has_live=False), CELLS), CELLS, CELLS + SYSTEM)
    assert is_about(prices.frame(State(1, more), CELLS), CELLS, slot + SYSTEM)
    assert is_about(prices.frame(State(3, more), CELLS), CELLS, slot + BETWEEN)
    assert is_about(prices.frame(State(1, more, has_live=False), CELLS), CELLS, slot + BETWEEN)
    assert is_about(prices.frames(State(3, more), CELLS, 1, 0), CELLS, slot + SYSTEM)
    assert is_about(prices.frames(State(3, more), CELLS, 3, 0), CELLS, 3 * slot + SYSTEM + 2 * BETWEEN)
    assert is_about(prices.frames(State(3, more), CELLS, 2, 2), CELLS, 2 * (slot + BETWEEN))
    assert is_about(prices.prefill(State(4, more), 3, 0), 0, 3 * slot + SYSTEM + 2 * BETWEEN)
    assert is_about(prices.prefill(State(1, more, has_live=False), 2, 0), 0, 2 * slot + SYSTEM + BETWEEN)
    assert is_about(prices.prefill(State(4, more), 2, 1), 0, 2 * (slot + BETWEEN))
    cold, read = prices.cold(State(3, more)), 3 * slot + SYSTEM + 2 * BETWEEN
    assert counts(cold) == (3 * CELLS, read, 0) and cold.ms == pytest.approx(6 * CELLS + 3 * read, rel=0.05)


@pytest.mark.parametrize('more', [0, 3, 6])
def test_a_larger_picture_takes_tokens_in_proportion(prices, more):
    assert is_about(prices.frame(State(2, more), 2 * CELLS), 2 * CELLS, 2 * (CELLS + more) + BETWEEN)
    assert is_about(prices.frame(State(2, more), CELLS + 1), CELLS + 1, CELLS + 1 + -(-more * 13 // 12) + BETWEEN)


def test_a_patch_costs_its_cells_and_reads_as_many_tokens_as_it_is_padded_to(prices):
    assert prices.patch(State(3), CELLS, 0) == prices.patch(None, CELLS, 0) == Work()
    for state, beside in (
        (None, SYSTEM),
        (State(0, has_live=False), SYSTEM),
        (State(1), SYSTEM),
        (State(2), BETWEEN),
        (State(3), BETWEEN),
    ):
        for changed in range(1, CELLS):
            work = prices.patch(state, CELLS, changed)
            most = state.tokens if state is not None else CELLS + SYSTEM
            assert counts(work) == (changed, padded_length(changed + beside, most), 0)
            # No patch was measured, so it is taken for the cells' share of the whole picture.
            assert work.ms == pytest.approx((2 * CELLS + 3 * (CELLS + beside)) * changed / CELLS, rel=1e-3)


@given(st.integers(1, 5000), st.integers(1, 6000))
def test_items_are_padded_to_the_length_that_is_told(count, most):
    length = padded_length(count, most)
    assert len(padded(np.arange(count), most)) == length
    assert count <= length <= max(count, most) and length <= 1.5 * count + 1
