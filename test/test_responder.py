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

"""What one question computes, what is booked for it, and what its answer says about that."""

from dataclasses import replace

import pytest
from credit import Idle, give_credit, use_up_credit
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.case import Case, cold_work
from vlm_reuse_node.session.progress import Progress
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Turn

QUESTION = Question('what color is the square ?', max_tokens=4, max_age_s=1000.0)
CHOICE = Question('what color is the square ?', ('red', 'green circle'), max_age_s=1000.0)
CONFIG = Config(audit_share=1.0)
PATCH = CONFIG.with_values(refresh_policy='patch', min_confidence=1e-9, min_text_confidence=1e-9, max_patches=1000)
PICTURE = Work(12, 25)  # from nothing


def at(stamp_s, by=0x80):
    """The first picture at a time, one corner another."""
    rgb = picture(1).rgb.copy()
    rgb[:100, :100] ^= by
    return replace(picture(1), rgb=rgb, stamp_ns=int(stamp_s * SECOND_NS))


class Camera:
    """A session, and what each of its answers spent and earned. Times are seconds."""

    def __init__(self, vlm, config=CONFIG, **given):
        self.vlm, self.session = vlm, SceneSession(vlm, config, 'front', clock=Idle(), **given)
        self.account, self.refresher = self.session._account, self.session._refresher

    def look(self, *frames):
        for frame in frames:
            self.session.look(frame)
        return self

    def ask(self, now_s=0.0, question=QUESTION, cold=False, newest=lambda: None, status=Status.OK, turn=None):
        """Returns the answer. Its work is then `spent`; what was booked for it is `booked` and `cold`."""
        spent, booked, cold_before = self.vlm.meter.done, self.account.spent, self.account.cold
        ask = self.session.ask_cold if cold else self.session.ask
        answer = ask(question, now_ns=int(now_s * SECOND_NS), newest=newest, turn=turn)
        assert answer.status == status, answer.message
        self.spent, self.booked = self.vlm.meter.done - spent, self.account.spent - booked
        self.cold = self.account.cold - cold_before
        return answer


def counts(work):
    return work.vision_tokens, work.prefill_tokens, work.decode_tokens


def of(answer):
    """The tokens of an answer without its state."""
    return answer.tokens_generated - (answer.tokens_generated == 4)  # the last of all is not read again


@pytest.fixture
def camera(vlm):
    """One that has answered another question about its first picture, at 0 s."""
    camera = Camera(vlm).look(picture(1))
    camera.ask(question=replace(QUESTION, text='where is it ?'))
    return camera


def patched(vlm, config=PATCH):
    """A camera whose patched state agrees with the picture of 1 s, and that has credit."""
    camera = Camera(vlm, config).look(picture(1))
    camera.ask()
    give_credit(camera.session)
    camera.look(at(1.0))
    return camera


def test_a_first_question_costs_what_cold_dense_costs(vlm):
    camera = Camera(vlm).look(picture(1))
    answer = camera.ask()
    assert answer.level == Level.FULL and (answer.tokens_reused, answer.cached_stamp_ns) == (0, 0)
    assert counts(camera.spent) == (12, answer.tokens_prefilled, of(answer))
    assert camera.booked == camera.spent and counts(camera.cold) == counts(camera.spent)
    assert camera.cold.ms > 0


@pytest.mark.parametrize('question', [QUESTION, CHOICE])
def test_a_follow_up_costs_its_own_tokens_and_earns_what_cold_dense_would_have_cost(camera, question):
    state = camera.refresher.state.tokens
    answer = camera.ask(question=question)
    assert answer.level == Level.REUSE and answer.tokens_reused == state == 25
    assert (
        counts(camera.spent)
        == counts(camera.booked)
        == (0, answer.tokens_prefilled, of(answer) if not question.choices else 0)
    )
    assert camera.cold.tokens == PICTURE.tokens + camera.spent.tokens


@pytest.mark.parametrize('question', [QUESTION, CHOICE])
def test_the_same_question_about_the_same_picture_costs_nothing_and_earns_as_much(camera, question):
    given = camera.ask(question=question)
    earned, heard = camera.cold, []
    camera.look(at(1.0, by=0))  # nothing has changed
    again = camera.ask(1.5, question, turn=Turn(listener=heard.append))
    assert again.remembered and not given.remembered
    assert camera.spent == Work() and counts(camera.booked) == (0, 0, 0)
    assert counts(camera.cold) == counts(earned) and camera.cold.ms == pytest.approx(earned.ms)
    assert (again.tokens_prefilled, again.tokens_generated, again.tokens_reused) == (0, 0, 25)
    for name in ('text', 'choice_index', 'choice_scores', 'confidence', 'token_ids', 'message', 'level', 'exact'):
        assert getattr(again, name) == getattr(given, name)
    assert (given.stamp_ns, again.stamp_ns, again.image_age_s) == (0, SECOND_NS, 0.5)  # of the newest picture
    assert heard == ([] if question.choices else [Progress('decode', given.text)])


@pytest.mark.parametrize(
    'question',
    [
        replace(QUESTION, text='what color is the circle ?'),
        replace(QUESTION, max_tokens=3),
        CHOICE,
        replace(CHOICE, choices=CHOICE.choices[::-1]),
        replace(CHOICE, choices=(*CHOICE.choices, 'blue')),
    ],
)
def test_another_question_is_computed(camera, question):
    for asked in (QUESTION, replace(CHOICE, choices=('red', 'green'))):
        camera.ask(question=asked)
    answer = camera.ask(question=question)
    assert not answer.remembered and camera.spent.prefill_tokens == answer.tokens_prefilled > 0
    assert camera.ask(question=question).remembered


@pytest.mark.parametrize('value', [{'seed': 1}, {'temperature': 0.5}, {'max_tokens': 5}])
def test_a_live_parameter_that_an_answer_depends_on_makes_another_question(camera, value):
    question = replace(QUESTION, max_tokens=0)
    camera.ask(question=question)
    camera.session.config = CONFIG.with_values(**value)
    assert not camera.ask(question=question).remembered
    assert camera.ask(question=question).remembered
    camera.session.config = CONFIG
    assert camera.ask(question=question).remembered  # the state is the same


def test_a_new_state_knows_no_answer_of_the_old_one(vlm):
    camera = Camera(vlm).look(picture(1))
    given = [camera.ask(question=replace(QUESTION, max_age_s=1000.0))]
    camera.look(at(1.0))
    given.append(camera.ask(1.0))  # cells changed
    camera.look(at(2.0, by=0x81))  # by too little to be seen
    assert camera.ask(2.0).remembered
    given.append(camera.ask(2.0, replace(QUESTION, force_refresh=True)))
    camera.look(at(3.0, by=0))
    given.append(camera.ask(3.0))  # as at first, but computed again
    camera.session.reset()
    camera.ask(status=Status.NO_IMAGE)
    camera.look(at(4.0, by=0))
    given.append(camera.ask(4.0))
    assert not any(answer.remembered for answer in given) and given[0].token_ids == given[-1].token_ids


def test_an_answer_that_was_not_completed_is_not_remembered(camera):
    calls = []
    camera.ask(turn=Turn(cancelled=lambda: calls.append(1) or len(calls) > 4), status=Status.CANCELLED)
    assert camera.spent.tokens > 0 and not camera.ask().remembered and camera.ask().remembered


def test_a_cold_answer_neither_comes_from_memory_nor_goes_into_it(camera):
    cold = camera.ask(cold=True)
    warm = camera.ask()
    again = camera.ask(cold=True)
    assert not (cold.remembered or warm.remembered or again.remembered) and camera.spent.vision_tokens == 12
    assert camera.ask().remembered


def test_a_remembered_answer_of_a_patched_state_is_given_again_when_it_is_not_sure_enough_any_more(vlm):
    camera = patched(vlm)
    first = camera.ask(1.0)
    unsure = camera.ask(1.0)
    assert unsure.remembered and not unsure.exact and first.level == Level.PATCH
    camera.session.config = PATCH.with_values(min_confidence=0.9999, min_text_confidence=0.9999)
    answer = camera.ask(1.0)
    assert answer.escalated and answer.exact and not answer.remembered and answer.level == Level.FRAME
    text = camera.session._responder._answerer.tokenize(QUESTION, PATCH).cost
    # Only the second answer was computed; the first was its draft.
    assert answer.tokens_prefilled == 25 + text + 3 == camera.spent.prefill_tokens and len(first.token_ids) == 4


def test_the_audit_samples_remembered_answers_of_exact_states_too(camera):
    noted = []
    camera.session._auditor.note = lambda *given: noted.append(given)
    answers = [camera.ask() for _ in range(2)]
    assert answers[1].remembered and noted[0] == noted[1]


def test_a_remembered_answer_of_a_patched_state_is_not_counted_again(vlm):
    camera, noted = patched(vlm, PATCH), []
    camera.session._auditor.note = lambda *given: noted.append(given)
    answers = [camera.ask(1.0) for _ in range(3)]
    assert not answers[0].exact and answers[2].remembered and len(noted) == 1


def test_a_document_is_given_by_a_whole_state_only(vlm):
    question = replace(QUESTION, json_schema='{"type": "object"}')
    config = PATCH.with_values(min_confidence=0.0, min_text_confidence=0.0)
    assert question.least_confidence(config) == 1.0
    assert (QUESTION.least_confidence(config), CHOICE.least_confidence(config)) == (0.0, 0.0)


def test_a_changed_picture_costs_a_frame_and_earns_nothing(camera):
    camera.look(at(1.0))
    answer = camera.ask(1.0)
    assert answer.level == Level.FRAME and answer.tokens_reused == 0 and answer.stamp_ns == SECOND_NS
    assert camera.booked.tokens == camera.spent.tokens == camera.cold.tokens


@pytest.mark.parametrize('question', [QUESTION, replace(QUESTION, max_tokens=40), CHOICE])
def test_an_answer_takes_no_more_tokens_than_were_expected(camera, question):
    answerer = camera.session._responder._answerer
    expected = answerer.expected(answerer.tokenize(question, CONFIG))
    camera.ask(question=question)
    assert camera.spent.tokens <= expected.tokens and expected.vision_tokens == 0
    assert camera.spent.prefill_tokens == expected.prefill_tokens


def test_a_slot_behind_keyframes_is_paid_alone(vlm):
    camera = Camera(vlm, CONFIG.with_values(history_frames=3, keyframe_interval_s=0.0))
    for number in range(3):
        camera.look(picture(number, number))
        answer = camera.ask(number, CHOICE)
        question = answer.tokens_prefilled - (14 if number else 25)
        assert question == answer.tokens_prefilled + answer.tokens_reused - 25 - 14 * number
        assert counts(camera.spent)[:2] == (12, answer.tokens_prefilled)
        assert counts(camera.cold)[:2] == (12 * (number + 1), answer.tokens_prefilled + answer.tokens_reused)


def test_a_cold_answer_is_on_no_account(camera):
    warm = camera.ask()
    answer = camera.ask(cold=True)
    assert camera.spent.tokens > 37 and camera.booked.tokens == camera.cold.tokens == 0 == camera.cold.ms
    assert abs(camera.booked.ms) < 1e-6
    assert answer.level == Level.FULL and answer.exact and answer.tokens_reused == 0
    assert answer.tokens_prefilled == warm.tokens_prefilled + 25
    assert (
        answer.refresh_ms > 0 and answer.prefill_ms > 0
    )  # of encoding, and of the picture's and the question's tokens
    assert answer.token_ids == warm.token_ids


def test_the_refresh_before_a_cold_answer_is_booked_and_earns_nothing(camera):
    camera.look(at(1.0))
    answer = camera.ask(1.0, cold=True)
    assert counts(camera.booked) == (12, 25, 0) and camera.cold.tokens == 0
    assert answer.stamp_ns == answer.cached_stamp_ns == SECOND_NS
    assert camera.spent.tokens == 2 * camera.booked.tokens + answer.tokens_prefilled - 25 + of(answer)
    kept = camera.ask(1.0)
    assert kept.level == Level.REUSE and kept.token_ids == answer.token_ids


def test_warm_answers_are_handed_to_the_audit_and_cold_ones_are_not(camera):
    noted, auditor = [], camera.session._auditor
    auditor.note = lambda *given: noted.append(given)
    camera.ask(cold=True)
    assert not noted
    answer = camera.ask()
    ((outcome, tokenized, state, config),) = noted
    assert outcome.token_ids == answer.token_ids and tokenized.question.text == QUESTION.text
    assert state is camera.refresher.state and config is camera.session._trust.used


def test_questions_are_noted_for_the_rhythm_unless_they_are_refused(camera):
    noted = []
    camera.session._upkeep.note_question = noted.append
    camera.ask(question=replace(QUESTION, text=' '), status=Status.INVALID_REQUEST)
    camera.ask(turn=Turn(cancelled=lambda: True), status=Status.CANCELLED)
    assert not noted
    camera.session.config = CONFIG.with_values(max_lag_s=3.0)
    camera.ask()
    assert [question.max_lag_s for question in noted] == [3.0]


@pytest.mark.parametrize('question, turn', [(replace(QUESTION, text=''), None), (QUESTION, 'cancelled')])
def test_a_question_that_is_refused_looks_at_nothing_and_costs_nothing(camera, question, turn):
    looked = []
    status = Status.CANCELLED if turn else Status.INVALID_REQUEST
    turn = turn and Turn(cancelled=lambda: True)
    answer = camera.ask(question=question, newest=lambda: looked.append(1), status=status, turn=turn)
    assert not looked and camera.booked == camera.cold == Work()
    assert answer.camera == 'front' and answer.model == camera.vlm.name and answer.level is None
    assert not answer.exact and answer.image_age_s == 0


def test_without_a_picture_the_camera_is_named(vlm):
    camera = Camera(vlm)
    answer = camera.ask(status=Status.NO_IMAGE)
    assert "'front'" in answer.message and camera.spent == camera.cold == Work()
    assert camera.ask(newest=lambda: picture(1)).level == Level.FULL


def test_a_picture_of_the_oldest_age_answers_and_an_older_one_is_refused(camera):
    question = replace(QUESTION, max_age_s=2.0)
    assert camera.ask(2.0, question).image_age_s == 2.0
    stale = camera.ask(2.25, question, status=Status.STALE)
    assert '2.25 s old' in stale.message and 'max_age 2 s' in stale.message and "'front'" in stale.message
    assert camera.spent == Work() and stale.image_age_s == 2.25


@pytest.mark.parametrize('age_s, level', [(1.5, Level.REUSE), (1.499, Level.FRAME)])
def test_the_age_of_what_a_lagging_state_shows_counts_too(camera, age_s, level):
    camera.look(at(1.0))
    question = replace(QUESTION, max_age_s=age_s, max_lag_s=5.0)
    assert camera.ask(1.5, question).level == level


@pytest.mark.parametrize('age_s, level', [(1.5, Level.REUSE), (1.499, Level.FRAME)])
def test_the_age_of_what_was_left_over_budget_counts_too(vlm, age_s, level):
    camera = Camera(vlm, CONFIG.with_values(budget_ms=1e-6)).look(picture(1))
    for count in (1, 2, 3):  # the costs of the model are known then
        camera.ask(question=replace(QUESTION, max_tokens=count))
    camera.look(at(1.0))
    answer = camera.ask(1.5, replace(QUESTION, max_age_s=age_s))
    assert (answer.level, answer.lag_s) == (level, 1.0 if level == Level.REUSE else 0.0)


@pytest.mark.parametrize('lag_s, level', [(1.0, Level.REUSE), (0.999, Level.FRAME)])
def test_a_lag_is_allowed_up_to_its_limit(camera, lag_s, level):
    camera.look(at(1.0))
    answer = camera.ask(1.5, replace(QUESTION, max_lag_s=lag_s))
    assert (answer.level, answer.lag_s) == (level, 1.0 if level == Level.REUSE else 0.0)
    assert answer.image_age_s == 0.5 + answer.lag_s and answer.frame_id == picture(1).frame_id


def test_a_question_that_waited_lags_less(camera):
    for stamp_s in (1.0, 2.0):
        camera.look(at(stamp_s))
    early = camera.ask(0.25)  # before the picture of the change
    assert early.level == Level.REUSE and (early.lag_s, early.image_age_s) == (0, 0.25)
    answer = camera.ask(1.25, replace(QUESTION, max_lag_s=1.5))  # 0.75 s before the newest picture
    assert answer.level == Level.REUSE and answer.lag_s == answer.image_age_s == 1.25


def test_a_forced_refresh_computes_the_newest_picture_once(camera):
    forced = replace(QUESTION, force_refresh=True)
    camera.look(at(1.0, by=0))
    assert camera.ask(1.0).level == Level.REUSE
    assert camera.ask(1.0, forced).level == Level.FRAME and camera.ask(1.0, forced).level == Level.REUSE


def test_a_patch_serves_while_credit_covers_it_and_a_second_answer(vlm):
    camera = patched(vlm)
    answer = camera.ask(1.0)
    assert answer.level == Level.PATCH and not answer.exact and not answer.escalated
    assert camera.spent.vision_tokens == 1 and camera.ask(1.0).level == Level.REUSE
    use_up_credit(camera.session)
    answer = camera.ask(1.0)  # it may not answer any more
    assert answer.level == Level.FRAME and answer.exact


@pytest.mark.parametrize('spare', [-1, 0])
def test_a_patch_may_be_overdrawn_by_the_first_questions_work(vlm, spare):
    camera = Camera(vlm, PATCH, measures_time=False).look(picture(1))
    first = camera.ask(question=CHOICE)
    camera.look(at(1.0))
    tokenized = camera.session._responder._answerer.tokenize(CHOICE, PATCH)
    patch = camera.refresher.prices.patch(camera.refresher.state, 12, int(PATCH.max_patch_share * 12))
    needed = patch.tokens + tokenized.cost - first.tokens_prefilled - 12
    camera.account._of_risks.tokens = float(needed + spare)
    assert camera.ask(1.0, CHOICE).level == (Level.FRAME if spare < 0 else Level.PATCH)


def test_an_unsure_answer_from_a_patched_state_is_given_again_and_both_are_paid(vlm):
    camera = patched(vlm, PATCH.with_values(min_confidence=0.9999, min_text_confidence=0.9999))
    noted = []
    camera.session._auditor.note = lambda *given: noted.append(given)
    answer = camera.ask(1.0)
    assert answer.escalated and answer.exact and answer.level == Level.FRAME and answer.tokens_reused == 0
    reused = camera.ask(1.0)
    assert reused.level == Level.REUSE and not reused.escalated and reused.token_ids == answer.token_ids
    assert reused.remembered and not answer.remembered
    text = camera.session._responder._answerer.tokenize(QUESTION, PATCH).cost
    # A patched and a whole slot, of which the state holds one; both answers had a draft of three tokens.
    assert answer.tokens_prefilled == 25 + 2 * (text + 3)
    assert len(noted) == 2 and noted[0][2] is camera.refresher.state
    camera = patched(vlm, PATCH.with_values(min_confidence=0.9999, min_text_confidence=0.9999))
    camera.ask(1.0)
    assert camera.spent.vision_tokens == 13 and camera.cold.tokens == 37 + text + of(answer)
    assert camera.booked.tokens == camera.spent.tokens > camera.cold.tokens


def test_the_confidence_that_is_asked_for_is_enough(vlm):
    camera = patched(vlm)
    confidence = camera.ask(1.0, CHOICE).confidence
    assert 0.5 <= confidence < 1
    for least, escalated in ((confidence, False), (confidence + 1e-6, True)):
        camera = patched(vlm, PATCH.with_values(min_confidence=least, min_text_confidence=least))
        assert camera.ask(1.0, CHOICE).escalated == escalated


def test_a_cold_answer_about_a_patched_state_is_of_the_whole_picture(vlm):
    camera = patched(vlm, PATCH.with_values(min_confidence=0.9999, min_text_confidence=0.9999))
    answer = camera.ask(1.0, cold=True)
    assert answer.exact and not answer.escalated and answer.level == Level.FULL and answer.stamp_ns == SECOND_NS
    assert camera.refresher.state.live.frame.stamp_ns == SECOND_NS


@pytest.mark.parametrize('stop_at', range(2, 8))
def test_a_question_that_is_cut_earns_nothing(camera, stop_at):
    camera.look(at(1.0))
    calls = []
    turn = Turn(cancelled=lambda: calls.append(1) or len(calls) >= stop_at)
    answer = camera.ask(1.0, turn=turn, status=Status.CANCELLED)
    assert camera.booked == camera.spent and camera.cold.tokens <= camera.spent.tokens
    assert answer.text == '' and answer.level is None and answer.image_age_s == 1.0 - answer.stamp_ns / SECOND_NS


def test_a_model_that_fails_is_told_and_logged_and_its_work_is_booked(camera, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(camera.vlm.family, 'forward', fail)
    answer = camera.ask(status=Status.MODEL_ERROR)
    assert answer.message == 'The model failed: RuntimeError: out of memory' and camera.refresher.state is None
    assert len(caplog.records) == 1 and "'front'" in caplog.text
    assert camera.booked == camera.spent and 0 < camera.spent.tokens == camera.cold.tokens
    monkeypatch.undo()
    again = camera.ask()
    assert again.level == Level.FULL and again.exact


def test_what_cold_dense_would_have_spent():
    """Of answers: what was counted; of questions that ended early: never more than they cost here."""
    one, two = (Case(QUESTION, 0, Turn()) for _ in range(2))
    few, many = Work(0, 10), Work(0, 20)
    assert cold_work([one, two], few) == [few]
    one.cold = few
    assert cold_work([one, two], many) == [few] and cold_work([one], Work(0, 1)) == [Work(0, 1)]
    two.cold = many
    two.end(Answer(Status.OK))
    assert cold_work([one, two], Work(0, 1)) == [many]
    one.end(Answer(Status.TIMEOUT))
    assert cold_work([one, two], Work(0, 1)) == [many]


def test_the_listener_hears_of_every_stage(camera):
    heard = []

    def stages(cold=False, by=0):
        heard.clear()
        camera.look(at(1.0, by))
        camera.ask(1.0, cold=cold, turn=Turn(listener=heard.append))
        return [progress.stage for progress in heard if not progress.text]

    assert stages()[:2] == ['prefill', 'decode'] and stages(by=0x80)[:3] == ['refresh', 'prefill', 'decode']
    assert stages(by=0x80, cold=True)[:3] == ['refresh', 'prefill', 'decode']
