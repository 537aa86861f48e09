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

"""A session that looks at every picture: what it computes and when, and what its answers say about the newest one."""

from dataclasses import replace

import numpy as np
import pytest
from credit import Idle, give_credit, use_up_credit
from stopping import stopping_at
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Halt, Turn

QUESTION = Question('what color is the square ?', max_tokens=4, max_age_s=1000.0)
PATIENT = replace(QUESTION, max_lag_s=2.0)
CORNER = slice(0, 100), slice(0, 100)
OTHER_CORNER = slice(400, 480), slice(560, 640)


def at(stamp_s, *areas, by=0x80):
    """The first picture at a time, some of its pixels others."""
    rgb = picture(1).rgb.copy()
    for area in areas:
        rgb[area] ^= by
    return Frame(rgb, int(stamp_s * SECOND_NS), 'camera_optical', 'camera')


def ns(seconds):
    return int(seconds * SECOND_NS)


def ask(session, now_s, question=QUESTION, **arguments):
    answer = session.ask(question, now_ns=ns(now_s), **arguments)
    assert answer.status == Status.OK, answer.message
    return answer


def asked_once(vlm, config=Config(), **arguments):
    """A session that has answered from its first picture, at 0 s."""
    session = SceneSession(vlm, config, **arguments)
    session.look(at(0))
    ask(session, 0)
    return session


class Spending:
    """The tokens that the model computes inside the block."""

    def __init__(self, vlm):
        self.vlm = vlm

    def __enter__(self):
        self._before = self.vlm.meter.done
        return self

    def __exit__(self, *_):
        self.tokens = (self.vlm.meter.done - self._before).tokens


@pytest.mark.parametrize('upkeep_share', [0.0, 1.0, 1000.0])
def test_nothing_is_computed_before_the_first_question(vlm, upkeep_share):
    idle = Idle()
    session = SceneSession(vlm, Config(upkeep_share=upkeep_share), clock=idle)
    with Spending(vlm) as spending:
        for step in range(5):
            look = session.look(picture(step, step))
            assert look.level == Level.REUSE and look.reason.startswith('not computed yet')
            assert look.stale.all() and not look.refreshed.any() and look.lag_s == look.spent_ms - look.change_ms == 0
            assert idle.spend(session) == 0
    assert spending.tokens == 0 and session.status.frames == session.status.held_bytes == 0
    answer = ask(session, 4)
    assert answer.level == Level.FULL and answer.cached_stamp_ns == ns(4) and answer.lag_s == 0


def test_a_look_computes_nothing_and_says_what_waits(vlm):
    session = asked_once(vlm)
    kept = session._refresher.state.identity
    with Spending(vlm) as spending:
        looks = [session.look(at(0.5)), session.look(at(1.0, CORNER)), session.look(at(1.5, CORNER, OTHER_CORNER))]
    assert spending.tokens == 0 and session._refresher.state.identity == kept
    assert [look.level for look in looks] == [Level.REUSE] * 3
    assert looks[0].reason == 'no cell changed' and not looks[0].stale.any()
    for look in looks[1:]:
        assert look.visual_tokens_stale == look.visual_tokens_changed > 0 == look.visual_tokens_refreshed
        assert look.reason == f'{look.visual_tokens_stale} of 12 cells are stale'
    assert looks[1].visual_tokens_stale < looks[2].visual_tokens_stale < 12
    assert [look.lag_s for look in looks] == [0, 0.5, 1.0]  # since the last picture that showed them unchanged
    assert [look.oldest_cell_age_s for look in looks] == [0.5, 1.0, 1.5]


@pytest.mark.parametrize('how', ['look', 'newest'])
def test_a_question_without_a_lag_is_answered_from_the_newest_picture(vlm, how):
    session, frame = asked_once(vlm), picture(2, 1.0)
    if how == 'look':
        session.look(frame)
    answer = ask(session, 1.5, **({'newest': lambda: frame} if how == 'newest' else {}))
    assert answer.level == Level.FRAME and answer.exact and answer.refresh_ms > 0
    assert answer.stamp_ns == answer.cached_stamp_ns == ns(1)
    assert (answer.lag_s, answer.image_age_s) == (0, 0.5)
    fresh = SceneSession(vlm, Config())
    fresh.look(frame)
    assert answer.token_ids == ask(fresh, 1.5).token_ids == session.ask_cold(QUESTION, now_ns=ns(1.5)).token_ids
    with Spending(vlm) as spending:
        again = ask(session, 1.6)
    assert again.level == Level.REUSE and again.token_ids == answer.token_ids
    assert spending.tokens == 0 and again.remembered


@pytest.mark.parametrize('from_config', [True, False])
def test_within_its_lag_a_question_is_answered_from_the_kept_state(vlm, from_config):
    session = asked_once(vlm, Config(max_lag_s=2.0) if from_config else Config())
    question, before = QUESTION if from_config else PATIENT, ask(session, 0)
    session.look(at(0.5))
    session.look(at(1.0, CORNER))
    session.look(at(2.5, CORNER))
    with Spending(vlm) as spending:
        answer = ask(session, 2.75, question)
    assert spending.tokens == 0 and answer.remembered  # nothing but the answer
    assert answer.level == Level.REUSE and answer.exact and answer.token_ids == before.token_ids
    assert answer.stamp_ns == ns(0.5) and answer.cached_stamp_ns == 0
    assert (answer.lag_s, answer.image_age_s) == (2.0, 2.25)
    session.look(at(2.6, CORNER))
    later = ask(session, 2.75, question)
    assert later.level == Level.FRAME and later.stamp_ns == later.cached_stamp_ns == ns(2.6)
    assert later.lag_s == 0 and later.image_age_s == pytest.approx(0.15)


def test_a_lag_that_is_allowed_does_not_make_an_old_picture_young(vlm):
    """max_age_s counts from the newest picture that the state agrees with."""
    session = asked_once(vlm)
    session.look(at(1.0, CORNER))
    session.look(at(2.0, CORNER))
    answer = ask(session, 2.5, replace(PATIENT, max_age_s=2.4))  # 0.5 s since the picture, and 2 s of lag
    assert answer.level == Level.FRAME and answer.image_age_s == 0.5
    session.look(at(3.0))
    assert ask(session, 3.2, replace(PATIENT, max_age_s=1.2)).level == Level.REUSE


@pytest.mark.parametrize('question', [QUESTION, PATIENT])
def test_what_changes_and_changes_back_costs_nothing(vlm, question):
    session = asked_once(vlm)
    for stamp_s in (1.0, 2.0):
        assert session.look(at(stamp_s, CORNER)).visual_tokens_stale > 0
    assert session.look(at(3.0)).visual_tokens_stale == 0
    with Spending(vlm) as spending:
        answer = ask(session, 3.5, question)
    assert answer.level == Level.REUSE and spending.tokens == 0 and answer.remembered
    assert answer.stamp_ns == ns(3) and answer.cached_stamp_ns == 0
    assert (answer.lag_s, answer.image_age_s) == (0, 0.5) and answer.exact


def test_a_question_that_waited_is_answered_from_any_picture_that_was_taken_after_it_was_asked(vlm):
    session = asked_once(vlm)
    for frame in (at(1.0), at(1.5, CORNER)):
        session.look(frame)
    with Spending(vlm) as spending:
        answer = ask(session, 0.9)  # the kept state agrees with the picture of 1.0 s
    assert answer.level == Level.REUSE and spending.tokens == 0 and answer.remembered
    assert answer.stamp_ns == ns(1) and answer.lag_s == answer.image_age_s == 0
    # At 1.1 s nothing was to be seen of the change at 1.5 s, and at 1.6 s it was.
    assert (between := ask(session, 1.1)).level == Level.REUSE and between.image_age_s == pytest.approx(0.1)
    later = ask(session, 1.6)
    assert later.level == Level.FRAME and later.stamp_ns == ns(1.5)


@pytest.mark.parametrize('area', [CORNER, OTHER_CORNER])
@pytest.mark.parametrize('call', [1, 2])
@pytest.mark.parametrize(
    'config',
    [
        Config(refresh_policy='exact'),
        Config(refresh_policy='patch', min_confidence=1e-9, min_text_confidence=1e-9),
    ],
)
def test_a_picture_that_comes_during_a_refresh_leaves_stale_what_differs_from_it(vlm, area, call, config):
    """As from another thread: before the vision tower, or before the prefill."""
    session, calls, records = give_credit(asked_once(vlm, config)), [], []
    session._refresher._on_refresh = lambda frame, record: records.append(record)
    older, newer = at(1.0, CORNER), at(2.0, area)

    def check():
        calls.append(1)
        if len(calls) == call:
            session.look(newer)

    refresh = session.observe(older, check=check)
    assert len(calls) >= call and refresh is records[-1] and refresh.stamp_ns == ns(1)
    assert session.newest is newer and session._refresher.state.live.frame is older
    # The stale cells are those that a session finds which has only seen the older picture before the newer one.
    other = SceneSession(vlm, config)
    other.observe(older)
    expected = other.look(newer).stale
    assert (refresh.stale == expected).all() and expected.any() == (area is OTHER_CORNER)
    kept = ask(session, 2.5, PATIENT)
    assert (
        kept.level == Level.REUSE and kept.cached_stamp_ns == ns(1) and kept.exact == (config.refresh_policy == 'exact')
    )
    assert kept.stamp_ns == ns(1 if expected.any() else 2) and kept.lag_s == expected.any()
    answer = ask(session, 2.5)
    assert answer.stamp_ns == ns(2) and answer.lag_s == 0 and (answer.level == Level.REUSE) != expected.any()


def test_a_picture_of_another_size_that_comes_during_a_refresh_makes_the_next_one_full(vlm):
    session, newer = asked_once(vlm), picture(3, 2.0, size=(320, 640))
    assert not session.can_look(newer)  # so it comes on the model's thread, between two refreshes
    assert session.can_look(at(1.0))
    session.look(newer)
    assert session.can_look(newer) and not session.can_look(at(3.0))
    answer = ask(session, 2.5, PATIENT)
    assert answer.level == Level.FULL and answer.stamp_ns == answer.cached_stamp_ns == ns(2) and answer.exact
    assert answer.token_ids == session.ask_cold(PATIENT, now_ns=ns(2.5)).token_ids


def test_a_clock_that_goes_back_during_a_refresh_leaves_every_cell_stale(vlm):
    session, back = asked_once(vlm), at(-5.0)
    calls = []
    refresh = session.observe(at(1.0, CORNER), check=lambda: calls.append(1) or len(calls) > 1 or session.look(back))
    assert refresh.level == Level.FRAME and refresh.stale.all() and session.newest is back
    answer = ask(session, -4.5, PATIENT)
    assert answer.level == Level.FULL and answer.stamp_ns == answer.cached_stamp_ns == ns(-5) and answer.lag_s == 0


@pytest.mark.parametrize('back_s', [0.001, 0.5, 1.0])
def test_stamps_that_jitter_are_skipped(vlm, back_s):
    records = []
    session = asked_once(vlm)
    session.look(at(5.0))
    session._refresher._on_refresh = lambda frame, record: records.append(record)
    with Spending(vlm) as spending:
        assert session.look(picture(2, 5.0 - back_s)) is None and session.observe(picture(2, 5.0 - back_s)) is None
        answer = ask(session, 5.0, newest=lambda: picture(2, 5.0 - back_s))
    assert not records and session.newest.stamp_ns == ns(5)
    assert answer.level == Level.REUSE and answer.stamp_ns == ns(5)
    assert spending.tokens == 0 and answer.remembered
    assert session.look(at(5.1)).reason == 'no cell changed'


def test_a_clock_that_went_back_starts_anew(vlm):
    session = asked_once(vlm, Config(history_frames=3, keyframe_interval_s=0.0))
    session.look(picture(2, 9.0))
    ask(session, 9)
    look = session.look(picture(2, 7.9))
    assert look.stale.all() and look.reason == 'not computed yet: time went back'
    assert session.look(picture(2, 8.0)).stale.all()  # nothing was computed in between
    answer = ask(session, 8, PATIENT)
    assert (
        answer.level == Level.FULL and answer.stamp_ns == answer.cached_stamp_ns == ns(8) and session.status.frames == 1
    )


@pytest.mark.parametrize('policy', ['exact', 'patch'])
def test_a_refresh_that_is_cut_before_its_prefill_leaves_the_kept_state_usable_and_exact(vlm, policy):
    session = asked_once(vlm, Config(refresh_policy=policy, min_confidence=1e-9, min_text_confidence=1e-9))
    give_credit(session)
    kept, before = session._refresher.state, ask(session, 0)
    session.look(at(1.0, CORNER))
    calls = []
    cut = session.ask(QUESTION, now_ns=ns(1), turn=Turn(cancelled=lambda: calls.append(1) or len(calls) > 1))
    assert cut.status == Status.CANCELLED and session._refresher.state is kept
    assert cut.stamp_ns == 0 and (cut.lag_s, cut.image_age_s) == (1, 1)
    answer = ask(session, 1.5, PATIENT)
    assert answer.level == Level.REUSE and answer.exact and answer.token_ids == before.token_ids
    assert answer.token_ids == session.ask_cold(PATIENT, now_ns=ns(1.5)).token_ids
    assert ask(session, 1.5).stamp_ns == ns(1)


@pytest.mark.parametrize('policy', ['exact', 'patch'])
def test_a_prefill_that_is_cut_waits_for_the_next_question(vlm, policy):
    session = asked_once(vlm, Config(refresh_policy=policy, min_confidence=1e-9, min_text_confidence=1e-9))
    give_credit(session)
    with pytest.raises(Halt):
        session.observe(at(1.0, CORNER), check=stopping_at(2))
    assert not session._refresher.newest.stale.any() and session.status.frames == 1
    with Spending(vlm) as spending:
        answer = ask(session, 1.5, PATIENT)
    assert answer.level == Level.REUSE and answer.exact == (policy == 'exact') and not answer.remembered
    assert answer.stamp_ns == answer.cached_stamp_ns == ns(1)
    own = session._responder._answerer.tokenize(PATIENT, session.config).cost
    assert spending.tokens >= answer.tokens_prefilled > own  # what waited, too
    assert policy == 'patch' or answer.token_ids == session.ask_cold(PATIENT, now_ns=ns(1.5)).token_ids


def test_what_a_question_spent_before_it_was_cut_is_booked(vlm):
    session = asked_once(vlm)
    session.look(picture(2, 1.0))
    spent, cold = session._account.spent, session._account.cold
    calls = []
    with Spending(vlm) as spending:
        session.ask(QUESTION, now_ns=ns(1), turn=Turn(cancelled=lambda: calls.append(1) or len(calls) > 3))
    assert spending.tokens > 0 and (session._account.spent - spent).tokens == spending.tokens
    # Cold-dense would have been cut as early: such a question earns no credit.
    assert (session._account.cold - cold).tokens <= spending.tokens


def test_all_that_the_model_does_for_a_camera_is_booked_on_it_but_cold_answers(vlm):
    idle = Idle()
    with Spending(vlm) as spending:
        session = asked_once(vlm, Config(audit_share=1.0), clock=idle)
        give_credit(session)
        session.look(at(1.0, CORNER))
        ask(session, 1.5, PATIENT)
        session.observe(picture(3, 2.0))
        session.ask(Question('<|image_pad|>'), now_ns=ns(2))
        assert idle.spend(session) > 0
    assert session._account.spent.tokens == spending.tokens
    for calls in (2, 5, 1000):  # a measurement, also when it is cut
        session.ask_cold(QUESTION, now_ns=ns(2), turn=Turn(cancelled=stopping_at(calls)))
        assert session._account.spent.tokens == spending.tokens
    totals = session.status.totals
    assert totals.work_ms > 0 and totals.ratio == totals.work_ms / totals.cold_ms


EAGER = Config(audit_share=0.0, upkeep_share=1000.0)  # a picture is computed as soon as the credit pays for it


def test_a_picture_is_computed_from_credit_in_stages_and_is_then_warm(vlm):
    idle, records = Idle(), []
    session = asked_once(vlm, EAGER, clock=idle)
    use_up_credit(session)
    session._refresher._on_refresh = lambda frame, record: records.append((frame, record))
    for stamp_s in (1.0, 2.0):
        session.look(at(stamp_s, CORNER))
    assert session.work() is None  # the credit is used up
    session._account._of_upkeep.forget_debt()
    give_credit(session)
    assert session.work() == 0 and session._refresher.is_between_stages
    kept = ask(session, 2.0, PATIENT)  # a question comes between the two stages
    assert kept.level == Level.REUSE and kept.cached_stamp_ns == 0 and kept.exact
    assert session.work() == 0 and not session._refresher.is_between_stages
    (frame, record) = records[-1]
    assert (
        record.level == Level.FRAME and record.stamp_ns == ns(2) and frame is session.newest and not record.stale.any()
    )
    answer = ask(session, 2.5)
    assert answer.level == Level.REUSE and answer.cached_stamp_ns == ns(2)
    assert answer.token_ids == session.ask_cold(QUESTION, now_ns=ns(2.5)).token_ids


def test_a_question_uses_the_stage_that_upkeep_has_done(vlm):
    session = give_credit(asked_once(vlm, EAGER, clock=Idle()))
    for stamp_s in (1.0, 2.0):
        session.look(picture(2, stamp_s))
    assert session.work() == 0
    before = vlm.meter.done
    answer = ask(session, 2.0)
    assert (vlm.meter.done - before).vision_tokens == 0 and answer.level == Level.FRAME
    assert answer.token_ids == session.ask_cold(QUESTION, now_ns=ns(2)).token_ids


def test_lags_are_true_whatever_is_looked_at_and_asked(vlm):
    """Each is how long ago the cell that is wrong for longest was last seen as the state has it."""
    rng, session, now_s, frames, levels = np.random.default_rng(0), asked_once(vlm), 0.0, [at(0)], []
    for _ in range(80):
        now_s += float(rng.choice((0.1, 0.3, 0.7)))
        newest = at(now_s, *(area for area in (CORNER, OTHER_CORNER) if rng.random() < 0.3))
        frames.append(newest)
        session.look(newest)
        if rng.random() < 0.5:
            continue
        allowed_s = float(rng.choice((0.0, 0.5, 2.0)))
        answer = ask(session, now_s, replace(QUESTION, max_lag_s=allowed_s))
        (cached,) = (frame for frame in frames if frame.stamp_ns == answer.cached_stamp_ns)

        def seen_ns(*areas):
            """The newest picture that shows these areas as the cached one does."""
            return max(
                frame.stamp_ns
                for frame in frames
                if all(np.array_equal(frame.rgb[area], cached.rgb[area]) for area in areas)
            )

        lag_ns = newest.stamp_ns - min(seen_ns(CORNER), seen_ns(OTHER_CORNER))
        assert answer.lag_s == answer.image_age_s == pytest.approx(lag_ns / SECOND_NS) and answer.lag_s <= allowed_s
        assert answer.stamp_ns == seen_ns(CORNER, OTHER_CORNER) and answer.exact
        levels.append((answer.level, answer.lag_s > 0))
    assert set(levels) == {(Level.REUSE, False), (Level.REUSE, True), (Level.FRAME, False)}


def test_questions_that_were_asked_together_share_a_refresh(vlm):
    """The second one waited while the first was answered, and a newer picture has come since both were asked."""
    session = SceneSession(vlm, Config())
    session.look(picture(1, 0.0))
    first = session.ask(QUESTION, now_ns=SECOND_NS // 20)
    session.look(picture(2, 0.1))
    done = vlm.meter.done
    second = session.ask(QUESTION, now_ns=SECOND_NS // 20)
    assert second.level == Level.REUSE and second.lag_s == 0 and second.image_age_s == first.image_age_s == 0.05
    assert second.stamp_ns == 0 and second.exact and (vlm.meter.done - done).vision_tokens == 0
    later = session.ask(QUESTION, now_ns=SECOND_NS // 5)
    assert later.level == Level.FRAME and later.stamp_ns == SECOND_NS // 10


def test_a_step_back_of_the_clock_of_arrival_makes_no_picture_unknown_to_a_question(vlm):
    """The camera has a clock of its own, which goes on."""
    session = SceneSession(vlm, Config())

    def look(frame, stamp_s, received_s):
        session.look(replace(frame, stamp_ns=ns(stamp_s), received_ns=ns(received_s)))

    look(picture(1), 10.0, 10.0)
    assert session.ask(QUESTION, now_ns=ns(10.0)).level == Level.FULL
    look(picture(2), 10.1, 10.1)
    look(picture(3), 10.2, 5.2)
    answer = session.ask(QUESTION, now_ns=ns(5.3))
    assert answer.level == Level.FRAME and answer.stamp_ns == ns(10.2)
    assert answer.lag_s == 0 and answer.image_age_s == pytest.approx(0.1)
