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

"""The drift audit finds what is really wrong with a kept state, tells it, and gives nothing else away."""

import logging
from types import SimpleNamespace

import mlx.core as mx
import pytest
from credit import Idle, give_credit, use_up_credit
from forgetful import forgetful
from stopping import stopping_at
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.auditor import MOST_WAITING, Auditor
from vlm_reuse_node.session.drift_bounds import DriftCount
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

QUESTION = Question('what color is the square ?', max_tokens=8, max_age_s=1000.0)
CHOICE = Question('what color is the square ?', ('red', 'green', 'blue', 'yellow'), max_age_s=1000.0)
ALL = Config(audit_share=1.0)
PATCH = ALL.with_values(refresh_policy='patch', min_confidence=1e-9, min_text_confidence=1e-9, max_patches=1000)


def observed(vlm, *seeds, config=ALL):
    session = forgetful(SceneSession(vlm, config, 'front'))
    for seed in seeds:
        session.observe(picture(seed, float(seed)))
    return session


def audit(session, check=lambda: None):
    """One step of an audit; `work` does the same when credit pays for it and nothing else is due."""
    session._auditor.step(check, session.config)


def audit_all(session):
    for _ in range(100):
        if not session._auditor._waiting:
            return session.status.audits
        audit(session)
    raise AssertionError('an audit does not end')


def corrupt(session, other):
    """Put the keys and values of another session's picture where those of this one's were."""
    for layer, theirs in zip(session._refresher.state.cache, other._refresher.state.cache):
        layer.keys, layer.values = mx.array(theirs.keys), mx.array(theirs.values)


@pytest.mark.parametrize('question', [QUESTION, CHOICE])
def test_an_exact_state_with_other_keys_and_values_drifts(vlm, question):
    session, same, other = observed(vlm, 1), observed(vlm, 1), observed(vlm, 2)
    right, wrong = (each.ask(question, now_ns=0) for each in (same, other))
    assert right.text != wrong.text
    session.ask(Question('where is it ?', max_tokens=4, max_age_s=1000.0), now_ns=0)
    corrupt(session, other)
    assert session.ask(question, now_ns=0).text == wrong.text
    counts = audit_all(session)  # the answer before, and the one behind it
    assert (counts.exact_answers, counts.exact_drifted, counts.patched.answers) == (2, 1, 0) and counts.is_trusted


@pytest.mark.parametrize('question', [QUESTION, CHOICE])
def test_an_exact_state_that_stands_for_an_older_picture_than_it_says_drifts(vlm, question):
    session = observed(vlm, 1)
    session._refresher.state.frames = (EncodedFrame.see(vlm, picture(2)),)
    session.ask(question, now_ns=0)
    counts = audit_all(session)
    assert (counts.exact_answers, counts.exact_drifted) == (1, 1)


def test_one_key_that_is_another_in_the_history_drifts(vlm):
    session = observed(vlm, 1, 2, 3, config=ALL.with_values(history_frames=3))
    layer = session._refresher.state.cache[0]
    layer.keys[:, :, 8] += 30
    session.ask(QUESTION, now_ns=0)
    counts = audit_all(session)
    assert len(session._refresher.state.frames) == 3 and (counts.exact_answers, counts.exact_drifted) == (1, 1)


def test_the_same_choice_is_the_same_answer_however_likely_it_is():
    assert not Outcome('red', 0.5, 0, (0.5, 0.5)).differs_from(Outcome('red', 0.9, 0, (0.9, 0.1)))
    assert not Outcome('red', 0.5, token_ids=(1, 2)).differs_from(Outcome('red', 0.9, token_ids=(1, 2), message='cut'))
    assert Outcome('red', 0.5, token_ids=(1, 2)).differs_from(Outcome('red', 0.5, token_ids=(1,)))
    assert Outcome('red', 0.5).choice_index == -1  # what answers say where there is none


def changed(stamp_s, by=0x80):
    """The first picture later, one corner another."""
    rgb = picture(1).rgb.copy()
    rgb[:100, :100] ^= by
    return Frame(rgb, int(stamp_s * SECOND_NS), camera='front')


def test_a_loss_of_trust_and_its_return_are_logged_once_each(vlm, caplog):
    caplog.set_level(logging.INFO)
    session = forgetful(SceneSession(vlm, PATCH.with_values(max_drift=0.5), 'front'))
    session.observe(picture(1))
    corrupt(session, observed(vlm, 2))
    caplog.clear()
    give_credit(session)  # a patched state may answer
    step = 0
    while session.status.audits.is_trusted and step < 20:
        step += 1
        assert session.observe(changed(0.1 * step, by=0x80 * (step % 2))).level == Level.PATCH
        assert not session.ask(QUESTION, now_ns=0).exact
        assert not caplog.records
        counts = audit_all(session)
        assert counts.patched == DriftCount(step, step)
    (lost,) = caplog.records
    assert lost.levelno == logging.WARNING
    assert lost.getMessage().startswith(f"Camera 'front': {step} of {step} audited answers from patched states")
    assert 'max_drift 0.5' in lost.getMessage()
    # What is computed whole is right again; after a while patches are tried again.
    assert session.observe(changed(5, by=0x40)).level == Level.FRAME
    for _ in range(20):
        if session.status.audits.is_trusted:
            break
        assert len(caplog.records) == 1
        assert session.ask(QUESTION, now_ns=0).exact
        audit_all(session)
    back = caplog.records[-1]
    assert len(caplog.records) == 2 and back.levelno == logging.INFO
    assert back.getMessage() == "Camera 'front': patching is tried again."
    assert session.observe(changed(6, by=0x20)).level == Level.PATCH
    session.ask(QUESTION, now_ns=0)
    counts = audit_all(session)
    assert (counts.patched.answers, counts.exact_drifted, len(caplog.records)) == (1, 0, 2)


def test_an_answer_whose_picture_was_changed_in_place_is_not_counted_and_the_next_one_is(vlm, caplog):
    session = observed(vlm, 1)
    session.ask(QUESTION, now_ns=0)
    rgb = session._refresher.state.live.frame.rgb
    rgb.setflags(write=True)
    rgb[0, 0] ^= 1
    session.observe(picture(2, 2.0))
    session.ask(QUESTION, now_ns=0)
    counts = audit_all(session)
    assert (counts.exact_answers, counts.exact_drifted) == (1, 0) and session._auditor.held_bytes == 0
    assert "'front': an answer could not be audited" in caplog.text and 'modified in place' in caplog.text


def test_a_step_that_was_broken_off_is_made_again(vlm):
    """In the vision tower and in the prefill of the frame; then behind the question, and at every token."""
    session = observed(vlm, 1)
    session.ask(QUESTION, now_ns=0)
    for looks in ((1, 2), (1, 2, 3, 9)):
        for at in looks:
            audit(session, stopping_at(at, Status.BUSY))
            assert session._auditor._waiting and session.status.audits.exact_answers == 0
        audit(session)
    assert not session._auditor._waiting
    assert (session.status.audits.exact_answers, session.status.audits.exact_drifted) == (1, 0)


def test_every_step_of_an_audit_waits_for_its_credit(vlm):
    idle = Idle()
    session = give_credit(SceneSession(vlm, ALL, 'front', clock=idle))
    session.look(picture(1))
    session.ask(QUESTION, now_ns=0)
    idle.now_s += 10.0
    assert session.work() == 0 and session._auditor.held_bytes > 0
    use_up_credit(session)  # questions in between may do that
    assert session.work() is None and session.status.audits.exact_answers == 0
    session._account._of_upkeep.forget_debt()
    give_credit(session)
    assert session.work() == 0 and session.status.audits.exact_answers == 1


def test_an_audit_holds_a_second_state_until_it_is_done(vlm):
    session = observed(vlm, 1, 2, 3, config=ALL.with_values(history_frames=3))
    held, steps = [session.status.held_bytes], 0
    session.ask(QUESTION, now_ns=0)
    assert session.status.held_bytes == held[0] and session._auditor.held_bytes == 0
    while session._auditor._waiting and steps < 9:
        audit(session)
        steps += 1
        held.append(session.status.held_bytes)
        assert (session._auditor.held_bytes > 0) == bool(session._auditor._waiting)
    assert steps == 4 and held[0] == held[-1] < held[1] <= held[2] <= held[3]  # a step each picture, and the answer
    audit(session)
    assert session.status.audits.exact_answers == 1


def test_what_is_forgotten_in_the_middle_holds_nothing_and_spoils_nothing(vlm):
    session = observed(vlm, 1, 2, config=ALL.with_values(history_frames=3))
    session.ask(QUESTION, now_ns=0)
    audit(session)
    session.reset()
    assert (
        not session._auditor._waiting
        and session._auditor.held_bytes == 0
        and session.status.frames == session.status.held_bytes == 0
    )
    session.observe(picture(7))
    session.ask(QUESTION, now_ns=0)
    counts = audit_all(session)
    assert (counts.exact_answers, counts.exact_drifted) == (1, 0)


def test_what_an_audit_is_expected_to_take_shrinks_with_every_step(vlm):
    session = observed(vlm, 1, 2, 3, config=ALL.with_values(history_frames=3))
    assert session._auditor.expected(vlm.meter) is None
    answer = session.ask(QUESTION, now_ns=0)
    expected, spent = session._auditor.expected(vlm.meter), []
    while session._auditor._waiting:
        before = vlm.meter.done
        left = session._auditor.expected(vlm.meter)
        audit(session)
        spent.append(vlm.meter.done - before)
        assert spent[-1].tokens <= left.tokens
    assert sum(work.tokens for work in spent) <= expected.tokens
    assert expected.vision_tokens == sum(work.vision_tokens for work in spent) == 3 * 12
    assert expected.decode_tokens >= answer.tokens_generated - 1
    assert session._auditor.expected(vlm.meter) is None


@pytest.mark.parametrize('held_bytes, fits', [(1_500_000, True), (1_500_001, False)])
def test_an_answer_waits_where_two_of_its_states_fit_into_the_memory(vlm, held_bytes, fits):
    answerer = SimpleNamespace(expected=lambda tokenized: Work())
    auditor = Auditor(vlm, answerer, 'front')
    state = SimpleNamespace(
        held_bytes=held_bytes + 7, checkpoint_bytes=14, frames=(), template_for=None, identity=None, tokens=0
    )
    auditor.note(Outcome('red', 1.0), None, state, ALL.with_values(max_cache_mb=3))
    assert bool(auditor._waiting) == fits and auditor.held_bytes == 0


def test_so_many_answers_wait_and_the_newer_ones_are_passed_over(vlm):
    session = observed(vlm, 1)
    for _ in range(MOST_WAITING):
        assert session.ask(QUESTION, now_ns=0).status == Status.OK
    corrupt(session, observed(vlm, 2))
    session.ask(QUESTION, now_ns=0)
    counts = audit_all(session)
    assert (counts.exact_answers, counts.exact_drifted) == (MOST_WAITING, 0)


def test_a_live_switch_of_the_policy_changes_nothing_in_a_whole_picture_s_audit(vlm):
    """Under either policy the twin is seen by the tower, as the picture was."""
    for before, after in ((PATCH, ALL), (ALL, PATCH)):
        session = observed(vlm, 1, config=before)
        session.ask(QUESTION, now_ns=0)
        session.config = after
        counts = audit_all(session)
        assert (counts.exact_answers, counts.exact_drifted) == (1, 0)


def test_held_bytes_count_the_pixels_of_every_picture_that_is_kept_once(vlm):
    session = observed(vlm, 1, 2, 3, config=ALL.with_values(history_frames=3))
    pixels = picture(1).rgb.nbytes
    state = session._refresher.state
    held = session.status.held_bytes
    assert held >= 3 * pixels + sum(encoded.nbytes for encoded in state.frames)
    session.ask(QUESTION, now_ns=0)  # it waits for its audit, and shares the state's pictures
    assert session.status.held_bytes == held and len(session._auditor.frames) == 3
    state.clear()  # now the audit alone keeps them
    assert session.status.held_bytes == 3 * pixels
    session.reset()
    assert session.status.held_bytes == 0
