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

"""The level patch in a session: when it is taken, what its answers say, and when they are given again."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from credit import Idle, give_credit, use_up_credit
from rounding import state_bound
from tiny_gemma4 import write_tiny_gemma4
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model import kv_cache, loading
from vlm_reuse_node.model.noise import apart
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.case import Case
from vlm_reuse_node.session.history import History
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Halt, Turn

QUESTION = Question('what color is the square ?', max_tokens=4, max_age_s=1000.0)
CHOICE = Question('what color is the square ?', ('red', 'green', 'blue'), max_age_s=1000.0)
PATCH = Config(refresh_policy='patch', min_confidence=1e-9, min_text_confidence=1e-9)
ALWAYS = PATCH.with_values(min_confidence=0.9999, min_text_confidence=0.9999)


def changed(frame, stamp_s, area=(slice(0, 100), slice(0, 100)), by=0x80):
    """The next frame: some pixels are others."""
    rgb = frame.rgb.copy()
    rgb[area] ^= by
    return Frame(rgb, int(stamp_s * SECOND_NS), frame.frame_id, frame.camera)


def patched(vlm, config=PATCH, **arguments):
    """A session whose state was patched once, and whose credit pays for patched answers."""
    session = give_credit(SceneSession(vlm, config, **arguments))
    session.observe(picture(1))
    session.observe(changed(picture(1), 0.1))
    return session


def levels(session, frames):
    return [session.observe(frame).level for frame in frames]


def flicker(count):
    """Pictures that differ in the same corner, one after the other."""
    return [changed(picture(1), 0.1 * number, by=0x80 * (number % 2)) for number in range(1, count + 1)]


def test_nothing_is_patched_unless_asked_for(vlm):
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    assert levels(session, flicker(3)) == [Level.FRAME] * 3
    assert session._refresher.state.live.vision is None


def test_a_small_change_pays_for_its_cells_alone(vlm):
    refreshes = []
    session = patched(vlm, on_refresh=lambda frame, refresh: refreshes.append(refresh))
    refresh = refreshes[-1]
    assert refresh.level == Level.PATCH and refresh.reason.endswith('cells changed')
    assert 0 < refresh.visual_tokens_refreshed < refresh.visual_tokens_total / 2
    assert refresh.visual_tokens_stale == 0 and refresh.refreshed[0, 0]
    assert session.observe(changed(picture(1), 0.2)).level == Level.REUSE


@pytest.mark.parametrize('question', [QUESTION, CHOICE])
def test_a_patched_state_answers_and_never_calls_it_exact(vlm, question):
    session = patched(vlm)
    answer = session.ask(question, now_ns=0)
    assert answer.status == Status.OK and answer.level == Level.REUSE and not answer.exact and not answer.escalated
    assert answer.cached_stamp_ns == SECOND_NS // 10 and answer.tokens_reused == session._refresher.state.tokens
    session.observe(changed(picture(1), 0.2))
    again = session.ask(question, now_ns=0)
    assert again.level == Level.REUSE and not again.exact and again.text == answer.text and again.remembered


@pytest.mark.parametrize('question', [QUESTION, CHOICE])
def test_a_question_pays_for_the_changed_cells_alone_if_the_credit_covers_a_second_answer(vlm, question):
    """Without credit the answer could cost more than cold-dense, should it have to be given again."""
    session = give_credit(SceneSession(vlm, PATCH))
    session.observe(picture(1))
    before = vlm.meter.done
    answer = session.ask(question, now_ns=SECOND_NS, newest=lambda: changed(picture(1), 0.1))
    assert answer.level == Level.PATCH and not answer.exact and answer.lag_s == 0
    assert answer.stamp_ns == answer.cached_stamp_ns == SECOND_NS // 10
    assert 0 < (vlm.meter.done - before).vision_tokens < 6
    observed = patched(vlm).ask(question, now_ns=SECOND_NS)
    assert answer.token_ids == observed.token_ids and answer.choice_index == observed.choice_index


@pytest.mark.parametrize('is_patched', [True, False])
def test_without_credit_a_question_gets_the_whole_picture(vlm, is_patched):
    session = SceneSession(vlm, PATCH)
    session.observe(picture(1))
    if is_patched:
        assert session.observe(changed(picture(1), 0.1)).level == Level.PATCH
    answer = session.ask(QUESTION, now_ns=SECOND_NS, newest=lambda: changed(picture(1), 0.2))
    assert answer.level == Level.FRAME and answer.exact and not answer.escalated
    assert answer.token_ids == session.ask_cold(QUESTION, now_ns=SECOND_NS).token_ids


def test_follow_ups_on_a_picture_earn_the_credit_of_a_patch(vlm):
    session = SceneSession(vlm, PATCH, measures_time=False)
    session.look(picture(1))
    assert session.ask(QUESTION, now_ns=SECOND_NS).level == Level.FULL
    for count in range(1, 9):
        asked = session.ask(replace(QUESTION, text=QUESTION.text + ' ?' * count), now_ns=SECOND_NS)
        assert asked.level == Level.REUSE and not asked.remembered
    answer = session.ask(QUESTION, now_ns=SECOND_NS, newest=lambda: changed(picture(1), 0.1))
    assert answer.level == Level.PATCH
    assert session._account.spent.tokens <= session._account.cold.tokens


@pytest.mark.parametrize('upkeep_share', [0.0, 0.5, 1.0, 3.0])
def test_what_upkeep_may_spend_does_not_decide_whether_a_question_is_patched(vlm, upkeep_share):
    session = SceneSession(vlm, PATCH.with_values(upkeep_share=upkeep_share), measures_time=False)
    found = []
    for step in range(5):
        session.look(changed(picture(1), step, by=0x80 >> step % 3))
        found.append(session.ask(QUESTION, now_ns=step * SECOND_NS).level)
    assert found == [Level.FULL, *4 * [Level.PATCH]]


def test_a_new_upkeep_share_begins_without_the_debt_of_the_old_one(vlm):
    session = SceneSession(vlm, Config(upkeep_share=0.0), measures_time=False)
    for step in range(9):
        session.look(picture(step, step))
        session.ask(QUESTION, now_ns=step * SECOND_NS)
    assert session.status.totals.credit_ms < 0
    session.config = Config()
    session.ask(QUESTION, now_ns=8 * SECOND_NS)  # nothing has changed: this one earns
    assert session.status.totals.credit_ms > 0


def test_a_patched_state_that_may_not_answer_any_more_is_computed_whole(vlm):
    """The picture has not changed; only the policy has, or the credit is used up."""
    for take_away in (
        lambda session: setattr(session, 'config', Config()),
        use_up_credit,
    ):
        session = patched(vlm)
        assert not session.ask(QUESTION, now_ns=SECOND_NS).exact
        take_away(session)
        answer = session.ask(QUESTION, now_ns=SECOND_NS)
        assert answer.level == Level.FRAME and answer.exact
        assert answer.token_ids == session.ask_cold(QUESTION, now_ns=SECOND_NS).token_ids


@pytest.mark.parametrize('has_credit, rested_s', [(True, 10.2), (False, 10.2), (True, 9.0)])
def test_a_patched_state_is_repaired_from_credit_once_it_must_be_whole_for_the_next_answer(vlm, has_credit, rested_s):
    """It was whole at 0 s, and max_cell_age_s is 10 s."""
    idle, refreshes = Idle(), []
    session = SceneSession(
        vlm, PATCH.with_values(audit_share=0.0), on_refresh=lambda frame, refresh: refreshes.append(refresh), clock=idle
    )
    session.observe(picture(1))
    session.observe(changed(picture(1), 0.1))
    session.look(changed(picture(1), rested_s))  # the scene rests
    if has_credit:
        give_credit(session)
    is_due = rested_s > 10
    assert idle.spend(session) == (2 if has_credit and is_due else 0)  # the vision tower, and the prefill
    answer = session.ask(QUESTION, now_ns=int(rested_s * SECOND_NS))
    assert answer.exact == is_due and answer.level == (Level.REUSE if has_credit else Level.FRAME)
    assert not is_due or refreshes[-1].reason == 'a patched frame is computed whole'


def test_a_cold_answer_is_computed_from_the_newest_picture_whole(vlm):
    session, fresh = patched(vlm), SceneSession(vlm, Config())
    fresh.observe(changed(picture(1), 0.1))
    cold, expected = session.ask_cold(QUESTION, now_ns=0), fresh.ask(QUESTION, now_ns=0)
    assert cold.exact and cold.level == Level.FULL and cold.token_ids == expected.token_ids
    assert not session.ask(QUESTION, now_ns=0).exact


@pytest.mark.parametrize('question', [QUESTION, CHOICE])
def test_an_answer_that_is_not_sure_is_given_again_from_the_whole_picture(vlm, question):
    refreshes = []
    session = patched(vlm, ALWAYS, on_refresh=lambda frame, refresh: refreshes.append(refresh))
    unsure = patched(vlm).ask(question, now_ns=0)
    answer, cold = session.ask(question, now_ns=0), session.ask_cold(question, now_ns=0)
    assert answer.escalated and answer.exact and answer.level == Level.FRAME and answer.refresh_ms > 0
    assert answer.text == cold.text and answer.token_ids == cold.token_ids
    assert answer.tokens_reused == 0 and answer.prefill_ms > 0  # the whole frame was paid for, and the question twice
    drafted = 0 if question.choices else 3  # the unsure answer is the draft of the second one
    assert answer.tokens_prefilled == 2 * unsure.tokens_prefilled + session._refresher.state.tokens + drafted
    assert refreshes[-1].level == Level.FRAME and refreshes[-1].stamp_ns == SECOND_NS // 10
    again = session.ask(question, now_ns=0)
    assert again.exact and not again.escalated and again.text == answer.text


@pytest.mark.parametrize('question, name', [(CHOICE, 'min_confidence'), (QUESTION, 'min_text_confidence')])
def test_the_threshold_of_its_kind_is_compared_with_the_probability_of_the_answer(vlm, question, name):
    answer = patched(vlm).ask(question, now_ns=0)
    assert not answer.choice_scores or answer.confidence == max(answer.choice_scores)
    for step, escalated in ((1e-3, True), (0, False), (-1e-3, False)):
        session = patched(vlm, PATCH.with_values(**{name: answer.confidence + step}))
        assert session.ask(question, now_ns=0).escalated == escalated


@pytest.mark.parametrize('question, name', [(CHOICE, 'min_confidence'), (QUESTION, 'min_text_confidence')])
def test_a_kind_of_question_that_no_patched_state_may_answer_gets_a_whole_one_at_once(vlm, question, name):
    session = patched(vlm, PATCH.with_values(**{name: 1.0}))
    passes = vlm.meter.done.passes
    answer = session.ask(question, now_ns=0)
    assert answer.exact and not answer.escalated and answer.level == Level.FRAME
    assert question is QUESTION or vlm.meter.done.passes == passes + 1


def test_the_confidence_of_a_text_is_that_of_its_least_likely_token(vlm):
    session = patched(vlm)
    answer, state = session.ask(QUESTION, now_ns=0), session._refresher.state

    def log_probabilities(state):
        ids = state.template.question(QUESTION.text) + list(answer.token_ids)
        positions = vlm.family.text_positions(state.next_position, len(ids))
        logits = np.array(vlm.run(state.cache, ids, positions, keep=len(answer.token_ids) + 1), np.float64)[:-1]
        of_all = np.log(np.exp(logits).sum(axis=1))
        return logits[np.arange(len(logits)), list(answer.token_ids)] - of_all

    least = log_probabilities(state).min()
    assert apart(np.log(answer.confidence), least) < state_bound(vlm, [state.live.frame], log_probabilities)


def test_a_picture_is_computed_whole_after_so_many_patches(vlm):
    session = SceneSession(vlm, PATCH.with_values(max_patches=2))
    session.observe(picture(1))
    assert levels(session, flicker(5)) == [Level.PATCH, Level.PATCH, Level.FRAME, Level.PATCH, Level.PATCH]
    session.observe(flicker(6)[-1])
    assert session.ask(QUESTION, now_ns=0).exact


def test_a_large_change_is_computed_whole(vlm):
    session = SceneSession(vlm, PATCH)
    session.observe(picture(1))
    assert session.observe(changed(picture(1), 0.1, area=(slice(0, 480), slice(0, 300)))).level == Level.FRAME
    assert session.observe(picture(2, 0.2)).level == Level.FRAME
    assert session.ask(QUESTION, now_ns=0).exact


def test_the_policy_may_change_between_two_pictures(vlm):
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    frames = flicker(5)
    session.config = PATCH
    assert levels(session, frames[:3]) == [Level.FRAME, Level.PATCH, Level.PATCH]  # the first keeps what is needed
    session.config = Config()
    assert levels(session, frames[3:]) == [Level.FRAME] * 2 and session.ask(QUESTION, now_ns=0).exact


def test_keyframes_are_kept_as_without_patches(vlm):
    session = SceneSession(vlm, PATCH.with_values(history_frames=3, keyframe_interval_s=1.0))
    session.observe(picture(1))
    assert session.observe(flicker(1)[0]).level == Level.FRAME  # the first picture becomes a keyframe
    assert session.observe(changed(picture(1), 0.5, by=0x40)).level == Level.PATCH
    assert session.observe(changed(picture(1), 1.6, by=0x20)).level == Level.PATCH  # the live one is of 0.5 s
    assert session.observe(changed(picture(1), 1.7)).level == Level.FRAME  # in place of the patched one
    assert session.observe(changed(picture(1), 1.8, by=0x40)).level == Level.FRAME
    assert [each.frame.stamp_ns for each in session._refresher.state.frames] == [0, int(1.7e9), int(1.8e9)]
    assert [each.vision is None for each in session._refresher.state.frames] == [True, True, False]
    warm, cold = session.ask(QUESTION, now_ns=0), session.ask_cold(QUESTION, now_ns=0)
    assert warm.exact and warm.token_ids == cold.token_ids  # what was patched is not kept


@pytest.mark.parametrize('least, is_exact', [(1e-9, True), (0.0, False)])
def test_a_question_that_a_patched_state_cannot_answer_is_asked_again_of_a_whole_one(vlm, monkeypatch, least, is_exact):
    """Such as a document that it does not end, or thoughts."""
    session = patched(vlm, PATCH.with_values(min_text_confidence=least))
    answerer, states = session._responder._answerer, []
    answer = answerer.answer

    def fails_on_patches(state, *given):
        states.append(state.exact)
        if not state.exact:
            raise InvalidRequestError('The answer did not fit.')
        return answer(state, *given)

    monkeypatch.setattr(answerer, 'answer', fails_on_patches)
    told = session.ask(QUESTION, now_ns=0)
    assert states == ([False, True] if is_exact else [False])
    assert (told.status == Status.OK) == told.escalated == told.exact == is_exact
    monkeypatch.undo()
    if is_exact:
        cold = session.ask_cold(QUESTION, now_ns=0)
        assert (told.text, told.token_ids) == (cold.text, cold.token_ids)


@pytest.mark.parametrize('kind', ['text', 'choices'])
def test_a_question_that_no_state_can_answer_is_refused_once(vlm, monkeypatch, kind):
    session, asked = patched(vlm), []

    def fails(state, *given, **more):
        asked.append(state.exact)
        raise InvalidRequestError('The answer did not fit.')

    for name in ('answer', 'choose'):
        monkeypatch.setattr(session._responder._answerer, name, fails)
    told = session.ask(QUESTION if kind == 'text' else CHOICE, now_ns=0)
    assert (told.status, told.message) == (Status.INVALID_REQUEST, 'The answer did not fit.') and asked == [False, True]


def test_an_escalation_keeps_the_picture_once(vlm):
    config = ALWAYS.with_values(history_frames=3, keyframe_interval_s=0.5)
    session = give_credit(SceneSession(vlm, config))
    for frame in (picture(1), changed(picture(1), 0.1), changed(picture(1), 0.9, by=0x40)):
        level = session.observe(frame).level
    assert level == Level.PATCH and len(session._refresher.state.frames) == 2
    assert session.ask(QUESTION, now_ns=0).escalated
    assert [each.frame.stamp_ns for each in session._refresher.state.frames] == [0, int(0.9e9)]


def test_a_patch_that_was_stopped_is_made_up_for(vlm):
    session = SceneSession(vlm, PATCH)
    session.observe(picture(1))

    def stop():
        raise Halt(Status.CANCELLED, 'enough')

    with pytest.raises(Halt):
        session.observe(flicker(1)[0], check=stop)
    answer = session.ask(QUESTION, now_ns=SECOND_NS)
    assert answer.stamp_ns == SECOND_NS // 10 == answer.cached_stamp_ns
    assert answer.token_ids == session.ask_cold(QUESTION, now_ns=SECOND_NS).token_ids


def test_a_whole_picture_is_bit_for_bit_what_cold_computes_from_it():
    """On a model whose vision tower run on all cells differs from the family's own pass in the last bits."""
    session = SceneSession(loading.load('tabletop'), PATCH.with_values(history_frames=3, keyframe_interval_s=0.5))
    patched = changed(picture(1), 0.1), changed(picture(1), 0.9, by=0x40)
    for frame in (picture(1), *patched, picture(2, 1.6), picture(3, 1.7)):
        session.observe(frame)
    kept = session._refresher.state
    twin = session._responder._cold_twin(Case(QUESTION, 0, Turn()))
    twin.settle()
    assert len(kept.frames) == 3 and kept.exact
    for one, other in zip(kept.cache, twin.cache):
        assert mx.array_equal(one.keys[..., : kept.tokens, :], other.keys[..., : kept.tokens, :])
        assert mx.array_equal(one.values[..., : kept.tokens, :], other.values[..., : kept.tokens, :])


@pytest.mark.parametrize('window, is_kept', [(28, True), (12, False)])
def test_what_cannot_be_patched_is_not_kept(tmp_path, window, is_kept):
    """A ring that is shorter than the picture's slot has dropped rows of it."""
    session = SceneSession(
        loading.load(str(write_tiny_gemma4(tmp_path / 'gemma4', window=window))),
        PATCH.with_values(history_frames=3, keyframe_interval_s=0.0),
    )
    for number in range(3):
        session.observe(picture(number, number / 10))
        live = session._refresher.state.live
        assert (live.vision is not None) == session._refresher.state.can_rewrite == is_kept
    assert len(session._refresher.state.frames) == 3


@pytest.mark.parametrize('window, level', [(64, Level.PATCH), (16, Level.FRAME)])
def test_a_sliding_window_is_patched_until_it_wraps(tmp_path, window, level):
    session = give_credit(SceneSession(loading.load(str(write_tiny_gemma4(tmp_path / 'gemma4', window=window))), PATCH))
    session.observe(picture(1))
    first = levels(session, flicker(1))
    for count in (1, 40):  # behind it the question may wrap it
        session.ask(Question('do you see it , or not ? ' * count, max_tokens=2, max_age_s=1000.0), now_ns=0)
    assert first == levels(session, [changed(picture(1), 1.0, by=0x40)]) == [level]
    assert session.ask(QUESTION, now_ns=0).exact == (level == Level.FRAME)


LOW = (slice(420, 480), slice(500, 640))  # in the last row of cells


def test_a_recurrent_model_pays_for_what_is_behind_a_checkpoint_before_the_change(recurrent):
    refreshes = []
    session = SceneSession(recurrent, PATCH, on_refresh=lambda frame, refresh: refreshes.append(refresh))
    session.observe(picture(1))
    before = recurrent.meter.done
    session.observe(changed(picture(1), 0.1, LOW))
    work, refresh = recurrent.meter.done - before, refreshes[-1]
    assert refresh.level == Level.PATCH and refresh.visual_tokens_encoded == work.vision_tokens < 4
    assert refresh.refreshed.tolist() == [[False] * 4] * 2 + [[True] * 4]  # the language model reads the whole row
    assert work.prefill_tokens == 4 + 1  # and the end of the picture
    assert refresh.visual_tokens_stale == 0 and session.observe(changed(picture(1), 0.2, LOW)).level == Level.REUSE


@pytest.mark.parametrize('question', [QUESTION, CHOICE])
def test_a_recurrent_models_unsure_answer_is_given_again_from_the_whole_picture(recurrent, question):
    never_sure = PATCH.with_values(min_confidence=1 - 1e-9, min_text_confidence=1 - 1e-9)
    session = give_credit(SceneSession(recurrent, never_sure))
    session.observe(picture(1))
    assert levels(session, [changed(picture(1), 0.1, LOW), changed(picture(1), 0.2)]) == [Level.PATCH] * 2
    answer, cold = session.ask(question, now_ns=0), session.ask_cold(question, now_ns=0)
    assert answer.escalated and answer.exact and answer.text == cold.text and answer.token_ids == cold.token_ids


def test_a_question_about_a_recurrent_models_patch_is_one_pass(recurrent):
    session = give_credit(SceneSession(recurrent, PATCH))
    session.observe(picture(1))
    session.ask(CHOICE, now_ns=0)
    passes, newer = recurrent.meter.done.passes, changed(picture(1), 0.1, LOW)
    answer = session.ask(CHOICE, now_ns=SECOND_NS, newest=lambda: newer)
    assert answer.level == Level.PATCH and not answer.exact and recurrent.meter.done.passes == passes + 1
    assert answer.tokens_reused == session.state.tokens - 5


@pytest.mark.parametrize('cells, level', [(12, Level.FRAME), (11, Level.PATCH)])
def test_a_patch_that_is_no_less_work_than_the_picture_is_the_picture(recurrent, cells, level):
    """Cells may be stale without a change, because they are in doubt for too long."""
    session = SceneSession(recurrent, PATCH.with_values(max_patch_share=1.0))
    levels(session, [picture(1), changed(picture(1), 0.1, LOW)])
    look = session._refresher.newest
    stale = np.arange(12).reshape(3, 4) < cells
    look = replace(look, change=replace(look.change, changed=stale, stale=stale))
    assert session._refresher._planner.plan(session.state, look, session.config, True, False).level == level


@pytest.mark.parametrize('fitting', [0, 1, 2])
def test_checkpoints_are_given_up_before_the_history_is(recurrent, monkeypatch, fitting):
    config = PATCH.with_values(history_frames=3, keyframe_interval_s=0.0)
    monkeypatch.setattr(
        History,
        'spare_bytes',
        staticmethod(lambda state, config: fitting * kv_cache.snapshot_bytes(state.cache)),
    )
    session = SceneSession(recurrent, config)
    for number in range(5):
        session.observe(picture(number, number / 10))
    size = kv_cache.snapshot_bytes(session.state.cache)
    assert len(session.state.frames) == 4 and session.state.checkpoint_bytes == fitting * size


def test_checkpoints_may_take_what_all_else_leaves_of_the_cameras_memory(recurrent):
    session = SceneSession(recurrent, PATCH.with_values(history_frames=1, keyframe_interval_s=0.0, max_cache_mb=7))
    for number in range(2):
        session.observe(picture(number, number / 10))
    state = session.state
    assert state.checkpoint_bytes > 0
    assert state.spare_bytes == 7e6 - 2 * (state.held_bytes - state.checkpoint_bytes)
