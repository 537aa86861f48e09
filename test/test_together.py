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

"""Questions that wait together, and standing questions: they share a pass, and each keeps its own fate."""

import gc
import weakref
from concurrent.futures import CancelledError
from dataclasses import replace
from threading import Event

import pytest
from patience import PATIENCE_S, wait_for
from tiny_model import SECOND_NS, picture
from working import answer, hold_a_question, show

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import loading
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.serving.inbox import Inbox
from vlm_reuse_node.serving.model_loop import MOST_QUESTIONS
from vlm_reuse_node.serving.queued_question import QueuedQuestion
from vlm_reuse_node.serving.watch import Watch
from vlm_reuse_node.session import responder
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.case import Case
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Turn

COLORS = ('red', 'green', 'blue', 'yellow', 'left', 'right', 'square', 'circle', 'one', 'two')
CHOICES = ('red', 'green circle', 'yes')


def question(color, choices=CHOICES, **values):
    return Question(f'is the square {color} ?', choices, **values)


@pytest.fixture(scope='module')
def vlm(model_dir):
    return loading.load(str(model_dir))


@pytest.fixture
def session(vlm):
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    return session


def asked(session, questions, frame=None, turns=None):
    """Ask together; return the answers and the passes it took."""
    turns = turns or [Turn() for _ in questions]
    now_ns = frame.stamp_ns if frame else 0
    cases = [Case(question, now_ns, turn) for question, turn in zip(questions, turns)]
    before = session._vlm.meter.done
    session.ask_together(cases, newest=lambda: frame)
    return [case.answer for case in cases], session._vlm.meter.done - before


@pytest.mark.parametrize('frame', [None, picture(2, 1.0), picture(2, 1.0, size=(640, 480))])
def test_ten_questions_with_choices_take_one_pass_whatever_has_changed(session, frame):
    questions = [question(color) for color in COLORS]
    answers, work = asked(session, questions, frame)
    assert work.passes == 1
    alone = SceneSession(session._vlm, Config())
    alone.observe(session.newest)
    for each, given in zip(questions, answers):
        expected = alone.ask(each, now_ns=0)
        assert given.status == Status.OK and given.choice_index == expected.choice_index
        assert given.choice_scores == pytest.approx(expected.choice_scores, abs=1e-4)
        assert given.cached_stamp_ns == session.newest.stamp_ns


def test_the_refresh_is_paid_once_and_every_answer_says_that_it_waited_for_it(session):
    answers, work = asked(session, [question(color) for color in COLORS], picture(2, 1.0))
    assert {each.level for each in answers} == {Level.FRAME}
    assert sum(each.tokens_prefilled for each in answers) == work.prefill_tokens
    assert [each.tokens_reused > 0 for each in answers] == [False] + [True] * 9


def test_cold_dense_is_credited_with_every_question(session):
    before = session._account.cold
    asked(session, [question(color) for color in COLORS])
    together = session._account.cold - before
    before = session._account.cold
    for color in COLORS:
        session.ask(question(color, CHOICES[:2] + ('no',)), now_ns=0)  # as many tokens
    assert together.tokens == (session._account.cold - before).tokens


@pytest.mark.parametrize('most, passes', [(1, 10), (40, 4), (10_000, 1)])
def test_a_pass_takes_a_bounded_number_of_tokens(session, monkeypatch, most, passes):
    monkeypatch.setattr(responder, 'MOST_TOKENS', most)
    answers, work = asked(session, [question(color) for color in COLORS])
    cost = answers[0].tokens_prefilled
    assert work.passes == (passes if most != 40 else -(-10 // max(1, 40 // cost)))
    assert all(each.status == Status.OK for each in answers)


def test_texts_are_written_one_by_one_in_their_place(session):
    texts = [replace(question(color), choices=(), max_tokens=3) for color in COLORS[:2]]
    answers, _ = asked(session, [question('red'), texts[0], question('blue'), texts[1]])
    for each, given in zip(texts, answers[1::2]):
        assert given.token_ids == session.ask_cold(each, now_ns=0).token_ids


def test_each_question_has_its_own_fate(session):
    """Invalid, cancelled before, cancelled meanwhile, late, and asked for a newer picture than there is."""
    calls = []
    questions = [
        question('red'),
        question('red', ('a', 'b')),
        question('blue'),
        question('green'),
        question('yellow', timeout_s=1.0),
        question('left', max_age_s=0.5),
        question('right'),
    ]
    turns = [Turn() for _ in questions]
    turns[1] = Turn(cancelled=lambda: True)
    turns[2] = Turn(cancelled=lambda: calls.append(1) or len(calls) > 1)
    turns[4] = Turn(asked_s=-1e9)
    questions[3] = replace(questions[3], choices=('yes', 'yes'))
    cases = [Case(each, 0, turn) for each, turn in zip(questions, turns)]
    cases[5].now_ns = SECOND_NS
    session.ask_together(cases)
    assert [case.answer.status.name for case in cases] == [
        'OK',
        'CANCELLED',
        'CANCELLED',
        'INVALID_REQUEST',
        'TIMEOUT',
        'STALE',
        'OK',
    ]
    for case in (cases[0], cases[6]):
        assert case.answer.choice_index == session.ask_cold(case.question, now_ns=0).choice_index


def test_when_all_are_cancelled_the_work_ends(session):
    calls = []
    turns = [Turn(cancelled=lambda: calls.append(1) or len(calls) > 4) for _ in range(2)]
    answers, work = asked(session, [question('red'), question('blue')], picture(2, 1.0), turns)
    assert {each.status for each in answers} == {Status.CANCELLED} and work.passes == 0


def test_only_the_unsure_are_asked_again_and_the_others_do_not_wait_for_them(vlm):
    def patched(least):
        session = SceneSession(
            vlm, Config(refresh_policy='patch', min_confidence=least, min_text_confidence=least, max_patch_share=1.0)
        )
        session.observe(picture(1))
        for _ in range(3):
            session._account.book_questions(Work(), [Work(prefill_tokens=10**9, ms=1e9)], 1.0)
        frame = picture(1, 1.0)
        pixels = frame.rgb.copy()
        pixels[:40, :40] ^= 0x80
        return session, replace(frame, rgb=pixels)

    questions = [question(color) for color in COLORS]
    session, frame = patched(0.0)
    answers, work = asked(session, questions, frame)
    assert work.passes == 1 and not any(each.escalated or each.exact for each in answers)
    confidences = sorted(each.confidence for each in answers)
    least = (confidences[4] + confidences[5]) / 2
    session, frame = patched(least)
    delivered = []
    cases = [Case(each, SECOND_NS, Turn()) for each in questions]
    for case in cases:
        case.deliver = lambda answer: delivered.append((answer.escalated, vlm.meter.done.passes))
    before = vlm.meter.done.passes
    session.ask_together(cases, newest=lambda: frame)
    assert [case.answer.escalated for case in cases] == [each.confidence < least for each in answers]
    assert delivered == [(False, before + 1)] * 5 + [(True, before + 2)] * 5
    assert all(case.answer.exact == case.answer.escalated for case in cases)


def test_a_model_that_fails_fails_them_all_and_the_next_ones_are_right(session, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(session._vlm.family, 'forward', fail)
    answers, _ = asked(session, [question('red'), question('blue')])
    assert {each.status for each in answers} == {Status.MODEL_ERROR}
    monkeypatch.undo()
    answers, _ = asked(session, [question('red'), question('blue')])
    assert {each.status for each in answers} == {Status.OK}


def test_what_was_answered_before_the_model_failed_stays_answered(session, monkeypatch):
    monkeypatch.setattr(responder, 'MOST_TOKENS', 1)
    forward, calls = session._vlm.family.forward, []

    def fail(*arguments, **values):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError('out of memory')
        return forward(*arguments, **values)

    monkeypatch.setattr(session._vlm.family, 'forward', fail)
    answers, _ = asked(session, [question(color) for color in COLORS[:4]])
    assert [each.status.name for each in answers] == ['OK'] + ['MODEL_ERROR'] * 3
    assert session._refresher.state is None and session.ask(question('one'), now_ns=0).status == Status.OK


def test_a_question_that_does_not_fit_into_the_context_is_refused_alone(session, monkeypatch):
    monkeypatch.setattr(session._vlm, 'context', session._refresher.state.tokens + 14)
    long = question('red', ('red red red red red red red', 'no'))
    answers, work = asked(session, [question('red'), long, question('blue')])
    assert [each.status.name for each in answers] == ['OK', 'INVALID_REQUEST', 'OK'] and work.passes == 1
    assert 'context' in answers[1].message


def test_who_has_gone_before_the_pass_does_not_go_through_it(session):
    """Cancelled between the look and the vision tower."""

    def leaves():
        calls = []
        return Turn(cancelled=lambda: calls.append(1) or len(calls) > 1)

    turns = [Turn(), *(leaves() for _ in COLORS[1:])]
    answers, work = asked(session, [question(color) for color in COLORS], picture(2, 1.0), turns)
    assert [each.status for each in answers] == [Status.OK] + [Status.CANCELLED] * 9
    assert work.prefill_tokens == answers[0].tokens_prefilled


def test_who_goes_during_the_pass_does_not_make_it_dearer_than_cold_dense(session):
    for stamp_s in range(1, 5):
        calls = []
        session.look(picture(stamp_s, stamp_s))
        asked_before = session._vlm.meter.done.passes
        gone = [Turn(cancelled=lambda: session._vlm.meter.done.passes > asked_before) for _ in COLORS[1:]]
        cases = [Case(question(color), stamp_s * SECOND_NS, turn) for color, turn in zip(COLORS, [Turn(), *gone])]
        session.ask_together(cases)
        assert [case.answer.status for case in cases] == [Status.OK] + [Status.CANCELLED] * 9, calls
    first = session._account._first.tokens
    assert session._account.spent.tokens <= session._account.cold.tokens + first  # the first picture was observed


def test_answers_come_in_the_order_of_the_questions_remembered_or_not(session):
    session.ask(question('blue'), now_ns=0)
    told = []
    cases = [Case(question(color), 0, Turn(), lambda answer, color=color: told.append(color)) for color in COLORS[:3]]
    session.ask_together(cases)
    assert told == list(COLORS[:3]) and [case.answer.remembered for case in cases] == [False, False, True]


@pytest.mark.parametrize('each', [question('red'), Question('what is it ?', max_tokens=3)])
def test_equal_questions_that_come_together_are_computed_once(session, each):
    alone, one = asked(session, [each])
    session.observe(picture(2, 1.0))
    answers, work = asked(session, [each] * 10)
    assert work.passes <= one.passes and [given.remembered for given in answers] == [False] + [True] * 9
    assert len({(given.text, given.choice_index) for given in answers}) == 1


def test_one_question_that_forces_a_refresh_makes_one_refresh(vlm):
    session = SceneSession(
        vlm, Config(refresh_policy='patch', min_confidence=1e-9, min_text_confidence=1e-9, max_patch_share=1.0)
    )
    session.observe(picture(1))
    session._account.book_questions(Work(), [Work(prefill_tokens=10**9, ms=1e9)], 1.0)
    frame = picture(1, 1.0)
    pixels = frame.rgb.copy()
    pixels[:40, :40] ^= 0x80
    answers, work = asked(session, [question('red'), question('blue', force_refresh=True)], replace(frame, rgb=pixels))
    assert work.vision_tokens == 12 and work.passes == 1 and all(each.exact for each in answers)


def test_a_question_that_ended_holds_no_state(session):
    """Without the help of the cyclic garbage collector, which may come late."""
    gc.disable()
    try:
        calls = []
        turn = Turn(cancelled=lambda: calls.append(1) or len(calls) > 3)
        asked_answer = session.ask(Question('what is it ?'), now_ns=0, turn=turn)
        assert asked_answer.status == Status.CANCELLED
        state = weakref.ref(session._refresher.state)
        session.reset()
        assert state() is None
    finally:
        gc.enable()


def queued(color, camera='a', standing=False, cold=False, choices=CHOICES):
    return QueuedQuestion(camera, question(color, choices), 0, cold=cold, is_standing=standing)


def test_companions_are_of_one_lane_and_camera_and_stand_right_behind():
    inbox = Inbox()
    planners = [queued(color) for color in COLORS[:3]]
    others = [queued('left', 'b'), queued('right', choices=()), queued('big')]
    for each in (*planners, *others):
        assert inbox.put_question(each, 100)
    standing = [queued(color, standing=True) for color in COLORS[:2]]
    for each in standing:
        inbox.put_standing(each)
    first = inbox.next(0)
    assert first is planners[0] and inbox.take_companions(first, 100) == planners[1:]  # up to the text
    assert inbox.take_companions(first, 100) == []
    assert [inbox.next(0) for _ in range(3)] == [others[0], others[1], others[2]]
    first = inbox.next(0)
    assert first is standing[0] and inbox.take_companions(first, 100) == standing[1:]
    assert len(inbox) == 0


def test_at_most_so_many_companions_are_taken():
    inbox = Inbox()
    waiting = [queued(color) for color in COLORS]
    for each in waiting:
        inbox.put_question(each, 100)
    assert inbox.take_companions(inbox.next(0), 3) == waiting[1:4] and inbox.next(0) is waiting[4]


@pytest.mark.parametrize('first', [queued('red', cold=True), queued('red', choices=())])
def test_a_cold_answer_and_a_text_have_no_companions(first):
    inbox = Inbox()
    for each in (first, queued('blue')):
        inbox.put_question(each, 100)
    assert inbox.take_companions(inbox.next(0), 3) == []


def test_no_cold_answer_joins():
    inbox = Inbox()
    for each in (queued('red'), queued('blue', cold=True)):
        inbox.put_question(each, 100)
    assert inbox.take_companions(inbox.next(0), 3) == []


def test_questions_that_wait_share_a_pass_and_each_is_answered(make_worker, brake):
    worker = make_worker(queue_size=100)
    show(worker, picture(1))
    held = hold_a_question(worker, brake)
    futures = [worker.ask('', question(color), 0) for color in COLORS]
    event = Event()
    cancelled = worker.ask('', question('red', ('yes', 'no')), 0, cancel=event)
    gone = worker.ask('', question('blue', ('yes', 'no')), 0)
    event.set()
    gone.cancel()
    brake.go_on.set()
    assert held.result(PATIENCE_S).status == Status.OK
    answers = [future.result(PATIENCE_S) for future in futures]
    assert cancelled.result(PATIENCE_S).status == Status.CANCELLED
    with pytest.raises(CancelledError):
        gone.result(PATIENCE_S)
    before = brake.passes
    for each, given in zip(COLORS, answers):
        assert given.status == Status.OK and answer(worker, question(each)).remembered
        assert given.choice_index == answer(worker, question(each), ask=worker.ask_cold).choice_index
    assert brake.passes > before


def test_standing_questions_whose_cells_changed_share_a_pass(make_worker, brake):
    worker = make_worker(queue_size=100)
    show(worker, picture(1))
    added = [worker.watch(Watch(0, '', question(color)), 0) for color in COLORS]
    for _, future in added:
        assert future.result(PATIENCE_S).status == Status.OK
    assert len(COLORS) < MOST_QUESTIONS
    held = hold_a_question(worker, brake)
    show(worker, picture(2, 1.0))
    wait_for(lambda: len(worker._inbox) == len(COLORS))
    brake.go_on.set()
    held.result(PATIENCE_S)
    before = brake.passes
    wait_for(lambda: not worker._watches._waiting)
    # At most one for all of them; none if they were all answered before it was counted.
    assert brake.passes - before <= 1
