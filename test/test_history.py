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

"""Keyframes of the past: what is kept, what a refresh pays with them, and that answers stay those of a cold run."""

from hashlib import sha256

import numpy as np
import pytest
from credit import give_credit
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import kv_cache
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Halt, Turn

QUESTION = Question('what color is the square ?', max_tokens=6)
SLOT = 14  # 12 cells, begin and end


def observed(vlm, *stamps, **config):
    """A session that has seen and computed another picture at each of these times."""
    session = SceneSession(vlm, Config(**({'history_frames': 3, 'keyframe_interval_s': 1.0} | config)))
    for seed, stamp_s in enumerate(stamps):
        session.observe(picture(seed, stamp_s))
    return session


def stamps(session):
    return [kept.frame.stamp_ns / SECOND_NS for kept in session._refresher.state.frames]


def answers_equal(session):
    now_ns, waiting = session.newest.stamp_ns, session._refresher.state.waiting
    warm, cold = session.ask(QUESTION, now_ns=now_ns), session.ask_cold(QUESTION, now_ns=now_ns)
    assert warm.status == cold.status == Status.OK
    assert warm.token_ids == cold.token_ids and warm.tokens_reused == session._refresher.state.tokens - waiting
    return warm


def dump(state):
    digest = sha256()
    for entry in state.cache:
        for array in (entry.keys, entry.values):
            digest.update(np.array(array[:, :, : state.tokens]).tobytes())
    return digest.hexdigest()


def has_rollover(session):
    return session._refresher.rollover_work is not None


def finish(session):
    """All steps of a rollover, which credit pays for."""
    give_credit(session)
    while has_rollover(session):
        assert session.work() == 0


def test_without_history_only_the_newest_picture_is_kept(vlm):
    assert stamps(observed(vlm, 0, 5, 10, history_frames=0)) == [10]


def test_a_picture_becomes_a_keyframe_when_it_is_old_enough_and_changed(vlm):
    session, seen = observed(vlm, 0, history_frames=9), []
    rgb = session.newest.rgb.copy()
    for step in range(1, 12):
        rgb[:60, :60] ^= 255  # most of the picture stays: no change of scene
        session.observe(Frame(rgb.copy(), stamp_ns=int(0.4 * step * SECOND_NS)))
        seen.append(stamps(session))
    history = seen[-1][:-1]
    assert len(history) > 3 and all(1.0 <= b - a < 1.5 for a, b in zip(history[1:], history[2:]))
    assert all(kept[:-1] == history[: len(kept) - 1] for kept in seen)  # what is kept stays
    answers_equal(session)


def test_a_change_of_scene_keeps_the_picture_before_it_at_once(vlm):
    assert stamps(observed(vlm, 0, 0.1, 0.2, keyframe_interval_s=60)) == [0, 0.1, 0.2]


def test_a_picture_that_did_not_change_costs_nothing_and_is_no_keyframe(vlm):
    session = observed(vlm, 0, 1)
    refresh = session.observe(picture(1, 5.0))
    assert refresh.level == Level.REUSE and stamps(session) == [0, 1]


@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_warm_equals_cold_at_every_length(vlm, count):
    session = observed(vlm, *range(count))
    assert len(session._refresher.state.frames) == count
    answers_equal(session)


def test_a_changed_picture_pays_for_its_own_slot_alone(vlm):
    session = observed(vlm, 0, 1, 2)
    tokens = session._refresher.state.tokens
    asked = session.ask(Question(QUESTION.text, force_refresh=True), now_ns=0, newest=lambda: picture(7, 2.1))
    assert session._refresher.state.tokens in (tokens, tokens + SLOT)
    assert asked.tokens_reused == session._refresher.state.tokens - SLOT and asked.level == Level.FRAME
    answers_equal(session)


def test_a_grown_state_is_bit_for_bit_one_computed_from_nothing(vlm):
    session = observed(vlm, 0, 1, 1.2, 2, 2.3)
    cold = states.build(
        vlm, session._template_for, [EncodedFrame.see(vlm, kept.frame) for kept in session._refresher.state.frames]
    )
    assert dump(session._refresher.state) == dump(cold)


def test_a_full_history_is_made_shorter_while_nobody_asks(vlm):
    refreshes = []
    session = observed(vlm, 0, 1, 2, 3)
    session._refresher._on_refresh = lambda frame, refresh: refreshes.append(refresh)
    assert not has_rollover(session)
    session.observe(picture(9, 4.0))
    assert has_rollover(session) and refreshes[-1].level == Level.FRAME  # the kept state serves on
    assert session.work() is None  # without credit
    answers_equal(session)
    give_credit(session)
    assert session.work() == 0
    answers_equal(session)
    session.observe(picture(10, 4.5))
    answers_equal(session)
    finish(session)
    assert stamps(session) == [3, 4.5] and session.newest.stamp_ns == 4.5 * SECOND_NS
    assert refreshes[-1].level == Level.FULL and refreshes[-1].reason == 'history rollover'
    answers_equal(session)


def test_a_shorter_history_makes_no_cell_new(vlm):
    """It is computed from the frames that were seen, not from newer ones."""
    refreshes = []
    session = observed(vlm, 0, 1, 2, 3)
    session._refresher._on_refresh = lambda frame, refresh: refreshes.append(refresh)
    for stamp_s in (4.0, 4.5):
        session.observe(picture(9, stamp_s))
    finish(session)
    session.observe(picture(9, 6.0))
    levels = [refresh.level for refresh in refreshes]  # a record of every look, and of every refresh
    assert levels == [Level.REUSE, Level.FRAME, Level.REUSE, Level.FULL, Level.REUSE]
    assert [refresh.oldest_cell_age_s for refresh in refreshes] == [1.0, 0.0, 0.5, 0.5, 2.0]


def test_memory_is_bounded_and_the_log_says_so(vlm, caplog, monkeypatch):
    for name in ('held_bytes', 'growth_bytes'):  # as if the model were larger
        real = getattr(kv_cache, name)
        monkeypatch.setattr(kv_cache, name, lambda *args, real=real: 4 * real(*args))
    session = observed(vlm, 0, history_frames=200, max_cache_mb=25)
    lengths = []
    for step in range(1, 45):
        session.observe(picture(step % 7, float(step)))
        finish(session)
        assert session._refresher.state.held_bytes <= 25e6
        lengths.append(len(session._refresher.state.frames))
    assert 'max_cache_mb 25' in caplog.text and 10 < max(lengths) < 44
    answers_equal(session)


def test_the_models_context_bounds_the_history(vlm, monkeypatch):
    monkeypatch.setattr(vlm, 'context', 100)
    session = observed(vlm, *range(9), history_frames=50)
    assert session._refresher.state.tokens <= 75
    answers_equal(session)


@pytest.mark.parametrize('is_due', [True, False])
@pytest.mark.parametrize('at', [1, 2])
def test_a_refresh_that_was_given_up_is_made_up_for(vlm, monkeypatch, is_due, at):
    if not is_due:
        monkeypatch.setattr('vlm_reuse_node.scene.change.CUT_SHARE', 2.0)  # a cut would make a keyframe at once
    session = observed(vlm, 0, 1, 2, **({} if is_due else {'keyframe_interval_s': 60.0}))
    with pytest.raises(Halt):
        session.observe(picture(8, 3.0), check=stopping_at(at))
    answer = session.ask(Question(QUESTION.text, max_tokens=6), now_ns=3 * SECOND_NS)
    assert answer.status == Status.OK and answer.cached_stamp_ns == answer.stamp_ns == 3 * SECOND_NS
    answers_equal(session)


def stopping_at(count):
    """A check that stops the model at its nth look."""
    looks = []

    def check():
        looks.append(1)
        if len(looks) == count:
            raise Halt(Status.CANCELLED, 'enough')

    return check


@pytest.mark.parametrize('frame', [picture(8, -0.5), picture(8, 3.0, size=(640, 480))])
def test_a_jump_that_was_given_up_is_not_forgotten(vlm, frame):
    session = observed(vlm, 1, 2)
    with pytest.raises(Halt):
        session.observe(frame, check=stopping_at(1))
    session.observe(picture(9, 3.5, size=frame.size[::-1]))
    assert stamps(session) == [3.5]
    answers_equal(session)


@pytest.mark.parametrize('at', range(1, 7))
def test_a_cut_that_was_given_up_never_serves_an_old_picture(vlm, monkeypatch, at):
    session = observed(vlm, 0, 1, 2, 3, history_frames=5)
    session.config = Config(history_frames=2, keyframe_interval_s=1.0)
    try:
        session.observe(picture(8, 4.0), check=stopping_at(at))
    except Halt:
        pass
    session.observe(picture(3, 4.1))  # what was live before
    assert np.array_equal(session._refresher.state.live.frame.rgb, picture(3).rgb)
    answers_equal(session)


def test_a_rollover_waits_for_a_live_picture(vlm):
    session = give_credit(observed(vlm, 0, 1, 2, 3, 4))
    while session._refresher._history._waiting:
        assert session.work() == 0
    session._refresher.state.drop_live()
    assert not has_rollover(session)
    assert session._refresher.step_rollover(lambda: None) is None
    session.observe(picture(8, 4.1))
    assert session.ask(QUESTION, now_ns=int(4.1 * SECOND_NS)).cached_stamp_ns == int(4.1 * SECOND_NS)
    session.reset()
    assert session.work() is None
    assert session.newest is None


def test_what_was_stopped_in_a_rollover_is_made_again(vlm):
    session = give_credit(observed(vlm, 0, 1, 2, 3, 4))
    left = session._refresher.rollover_work
    session.work(stopping_at(1))
    assert session._refresher.rollover_work.tokens == left.tokens
    finish(session)
    assert stamps(session) == [3, 4]
    answers_equal(session)


def test_one_picture_that_fills_memory_or_context_keeps_no_history(vlm, monkeypatch, caplog):
    monkeypatch.setattr(vlm, 'context', 45)
    session = observed(vlm, 0, 1, 2, history_frames=3)
    finish(session)
    assert stamps(session) == [2] and not has_rollover(session) and 'only 0 of 3 keyframes' in caplog.text
    answers_equal(session)


@pytest.mark.parametrize('frames', [0, 1, 2])
def test_a_lower_limit_holds_from_the_next_change_on(vlm, frames):
    session = observed(vlm, 0, 1, 2, 3, 4, 5, history_frames=5)
    session.config = Config(history_frames=frames)
    session.observe(picture(9, 6.0))
    assert len(stamps(session)) == frames + 1 and stamps(session)[-1] == 6
    answers_equal(session)


def test_a_failing_rollover_leaves_the_kept_state(vlm, monkeypatch, caplog):
    session = give_credit(observed(vlm, 0, 1, 2, 3, 4))
    assert has_rollover(session)
    monkeypatch.setattr(session._refresher._history._next, 'append', lambda *_: 1 / 0)
    session.work()
    assert not has_rollover(session) and 'rollover failed' in caplog.text
    answers_equal(session)
    session.observe(picture(9, 9.0))  # from now on in the kept state's place
    assert not has_rollover(session) and stamps(session)[-1] == 9
    answers_equal(session)


@pytest.mark.parametrize('frame', [picture(1, 5.0, size=(640, 480)), picture(1, 2.5)])
def test_another_size_and_time_going_back_forget_the_history(vlm, frame):
    session = observed(vlm, 0, 1, 2, 3, 4)
    assert session.observe(frame).level == Level.FULL
    assert len(session._refresher.state.frames) == 1 and not has_rollover(session)
    answers_equal(session)


def test_a_chat_template_that_numbers_its_pictures_at_the_end_keeps_no_history(vlm, monkeypatch, caplog):
    monkeypatch.setattr('vlm_reuse_node.model.prompt.PromptTemplate.extends', lambda *_: False)
    session = observed(vlm, 0, 1, 2)
    assert stamps(session) == [2] and 'no history' in caplog.text


@pytest.mark.parametrize('upkeep_share', [0.0, 1.0])
def test_without_upkeep_a_full_history_is_shortened_with_the_picture_that_fills_it(vlm, upkeep_share):
    session = observed(vlm, 0, 1, 2, 3, upkeep_share=upkeep_share)
    session.observe(picture(9, 4.0))
    assert has_rollover(session) == (upkeep_share > 0) and stamps(session)[-1] == 4
    assert len(stamps(session)) == (4 if upkeep_share else 2)  # a rollover is made beside the kept state
    answers_equal(session)


@pytest.mark.parametrize('seed', range(6))
def test_any_sequence_leaves_warm_equal_to_cold(vlm, seed):
    rng, session = np.random.default_rng(seed), observed(vlm, 0, history_frames=int(seed % 4))
    now_s = 0.0
    for _ in range(25):
        now_s += rng.choice((0.1, 0.6, 1.5))
        act = rng.choice(
            ('new', 'look', 'same', 'work', 'ask', 'cancel', 'reset'), p=(0.25, 0.1, 0.1, 0.25, 0.15, 0.1, 0.05)
        )
        if act == 'reset':
            session.reset()
        if act in ('new', 'reset'):
            session.observe(picture(int(rng.integers(5)), now_s))
        elif act == 'look':
            session.look(picture(int(rng.integers(5)), now_s))
        elif act == 'same':
            session.observe(Frame(session.newest.rgb, stamp_ns=int(now_s * SECOND_NS)))
        elif act == 'work':
            give_credit(session).work()
        elif act == 'ask':
            assert session.ask(QUESTION, now_ns=session.newest.stamp_ns).status == Status.OK
        elif act == 'cancel':
            looks, limit = [], int(rng.integers(1, 8))
            session.ask(
                Question(QUESTION.text, force_refresh=True),
                now_ns=int(now_s * SECOND_NS),
                newest=lambda: picture(int(rng.integers(5)), now_s),
                turn=Turn(cancelled=lambda: looks.append(1) or len(looks) > limit),
            )
        if session._refresher.newest.is_current:
            answers_equal(session)
    finish(session)
    assert session.ask(QUESTION, now_ns=session.newest.stamp_ns).status == Status.OK
    answers_equal(session)
