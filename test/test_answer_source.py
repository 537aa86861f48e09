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

"""What an answer tells about its picture: the rows of docs/interfaces.md, 'Which picture an answer comes from'."""

from dataclasses import replace

import pytest
from credit import give_credit, use_up_credit
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

# Every session is asked at 0 s about picture 1, and sees the same picture at 1 s. Mostly another one comes at 2 s, and
# the question at 2.5 s.
ASKED_S = 2.5


@pytest.fixture
def make_session(vlm):
    def make(last=None, **values):
        session = SceneSession(vlm, Config(max_age_s=60.0, upkeep_share=0.0, **values))
        for count in (1, 2, 3):  # the costs of the model are known then
            session.ask(Question('what ?', max_tokens=count), now_ns=0, newest=lambda: picture(1))
        session.look(picture(1, stamp_s=1))
        if last:
            session.look(last)
        return session

    return make


def ask(session, now_s=ASKED_S, cold=False, **fields):
    question = Question('what color is the square ?', max_tokens=2, **fields)
    return (session.ask_cold if cold else session.ask)(question, now_ns=int(now_s * SECOND_NS))


def told(answer):
    """Status, level, stamp, cached stamp, image age, lag, exact: with times in seconds."""
    stamps = answer.stamp_ns / SECOND_NS, answer.cached_stamp_ns / SECOND_NS
    times = pytest.approx(answer.image_age_s, abs=1e-6), pytest.approx(answer.lag_s, abs=1e-6)
    return answer.status, answer.level, *stamps, *times, answer.exact


def one_cell_changed(stamp_s):
    rgb = picture(1).rgb.copy()
    rgb[:160, :160] ^= 255
    return replace(picture(1, stamp_s=stamp_s), rgb=rgb)


def test_no_cell_is_stale(make_session):
    assert told(ask(make_session(), 1.5)) == (Status.OK, Level.REUSE, 1, 0, 0.5, 0, True)


@pytest.mark.parametrize('max_lag_s', [1.0, 60.0])
def test_cells_are_stale_and_their_lag_is_allowed(make_session, max_lag_s):
    session = make_session(picture(2, stamp_s=2))
    expected = Status.OK, Level.REUSE, 1, 0, 1.5, 1, True
    assert told(ask(session, max_lag_s=max_lag_s)) == expected
    assert told(ask(session, max_lag_s=max_lag_s, cold=True)) == (Status.OK, Level.FULL, *expected[2:])


@pytest.mark.parametrize('max_lag_s', [0.0, 0.9])
def test_cells_are_stale_and_their_lag_is_not_allowed(make_session, max_lag_s):
    session = make_session(picture(2, stamp_s=2))
    assert told(ask(session, max_lag_s=max_lag_s)) == (Status.OK, Level.FRAME, 2, 2, 0.5, 0, True)


def test_the_lag_of_a_question_that_waited_ends_when_it_was_asked(make_session):
    session = make_session(picture(2, stamp_s=2))
    # At 1.4 s the change at 2 s was not to be seen.
    assert told(ask(session, 1.4)) == (Status.OK, Level.REUSE, 1, 0, 0.4, 0, True)
    session.look(picture(2, stamp_s=3))
    assert told(ask(session, 2.4, max_lag_s=1.5)) == (Status.OK, Level.REUSE, 1, 0, 1.4, 1.4, True)
    assert told(ask(session, 2.4, max_lag_s=1.3)) == (Status.OK, Level.FRAME, 3, 3, 0, 0, True)


def test_only_the_stale_cells_are_computed(make_session):
    session = make_session(one_cell_changed(2), refresh_policy='patch', min_confidence=1e-9, min_text_confidence=1e-9)
    give_credit(session)
    assert told(ask(session)) == (Status.OK, Level.PATCH, 2, 2, 0.5, 0, False)
    session.look(one_cell_changed(2.25))
    assert told(ask(session)) == (Status.OK, Level.REUSE, 2.25, 2, 0.25, 0, False)
    assert told(ask(session, cold=True)) == (Status.OK, Level.FULL, 2.25, 2, 0.25, 0, True)
    session.look(picture(2, stamp_s=2.5))
    assert told(ask(session, 3.0, max_lag_s=1.0)) == (Status.OK, Level.REUSE, 2.25, 2, 0.75, 0.25, False)


def test_a_patched_state_answers_only_while_there_is_credit_to_answer_again(make_session):
    session = make_session(one_cell_changed(2), refresh_policy='patch', min_confidence=1e-9, min_text_confidence=1e-9)
    give_credit(session)
    assert ask(session).level == Level.PATCH
    use_up_credit(session)
    assert told(ask(session)) == (Status.OK, Level.FRAME, 2, 2, 0.5, 0, True)


def test_an_unsure_answer_is_given_again_from_the_whole_picture(make_session):
    session = make_session(
        one_cell_changed(2), refresh_policy='patch', min_confidence=0.9999, min_text_confidence=0.9999
    )
    give_credit(session)
    answer = ask(session)
    assert answer.escalated and told(answer) == (Status.OK, Level.FRAME, 2, 2, 0.5, 0, True)


def test_there_is_no_state(vlm):
    session = SceneSession(vlm, Config(upkeep_share=0.0))
    session.look(picture(2, stamp_s=2))
    assert told(ask(session, max_lag_s=60.0)) == (Status.OK, Level.FULL, 2, 2, 0.5, 0, True)


def test_the_budget_leaves_cells_stale(make_session):
    session = make_session(picture(2, stamp_s=2), budget_ms=1e-6)
    assert told(ask(session)) == (Status.OK, Level.REUSE, 1, 0, 1.5, 1, True)
    assert told(ask(session, max_age_s=1.25)) == (Status.OK, Level.FRAME, 2, 2, 0.5, 0, True)


def test_a_forced_refresh_takes_the_newest_picture_itself(make_session):
    assert told(ask(make_session(), 1.5, force_refresh=True)) == (Status.OK, Level.FRAME, 1, 1, 0.5, 0, True)


@pytest.mark.parametrize('last, stamp_s, age_s, lag_s', [(None, 1, 9, 0), (picture(2, stamp_s=2), 1, 9, 1)])
def test_the_camera_has_stopped(make_session, last, stamp_s, age_s, lag_s):
    session = make_session(last)
    expected = Status.STALE, None, stamp_s, 0, age_s, lag_s, False
    assert told(ask(session, 10.0, max_age_s=5.0)) == expected
    kept = ask(session, 10.0, max_lag_s=5.0)  # of which the age is allowed
    assert told(kept) == (Status.OK, Level.REUSE, stamp_s, 0, age_s, lag_s, True)


def test_there_is_no_picture(vlm):
    assert told(ask(SceneSession(vlm, Config()))) == (Status.NO_IMAGE, None, 0, 0, 0, 0, False)
