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

"""What upkeep does, when, and what pays for it: decided about a refresher that only says what it would do."""

import logging
import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
from credit import Idle, give_credit, use_up_credit
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model.vlm import go_on
from vlm_reuse_node.model.work import Meter, Work
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.account import Account
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Halt
from vlm_reuse_node.session.upkeep import EARLY_S, LEAST_LIKELY, QUIET_S, RESTED_S, WORTH, Upkeep

ANSWER = Work(0, 400, 0, 400.0)  # of cold-dense
STAGE = Work(0, 100, 0, 100.0)
CONFIG = Config()
QUESTION = Question('what color is the square ?', max_tokens=4, max_age_s=1000.0)


@dataclass(eq=False)
class Look:
    """The newest picture; half a second after the one before it, and other than the state."""

    is_current: bool = False
    lag_s: float = 0.5
    period_s: float = 0.5
    still_s: float = 0.0
    is_lost: bool = False

    @property
    def change(self):
        return None if self.is_lost else SimpleNamespace(still_s=self.still_s)


@dataclass
class Refresher:
    """Says what it would do, and notes it as done. raises: an error, in place of that."""

    meter: Meter
    newest: Look | None = field(default_factory=Look)
    state: object | None = 'a state'
    work: Work = STAGE
    is_between_stages: bool = False
    rollover_work: Work | None = None
    has_overdue: bool = False
    has_keyframe: bool = False
    raises: Exception | None = None
    done: list = field(default_factory=list)

    def expected(self, config, may_patch):
        assert config is CONFIG or isinstance(config, Config)
        return Work() if self.work is None else self.work if not may_patch else replace(self.work, prefill_tokens=1)

    def _do(self, *what):
        self.done.append(what)
        self.meter.done += STAGE
        if self.raises:
            raise self.raises

    def step(self, config, may_patch, check):
        self._do('refresh', may_patch, check)

    def step_rollover(self, check):
        self._do('rollover', check)

    def is_keyframe_due(self, config):
        return self.has_keyframe

    def is_overdue(self, config):
        return self.has_overdue


@dataclass
class Auditor:
    """Has an audit or none."""

    refresher: Refresher
    work: Work | None = None
    is_busy: bool = False
    trusts: bool = False

    def expected(self, meter):
        assert meter is self.refresher.meter
        return self.work

    def allows_patches(self, config):
        return self.trusts

    def step(self, check, config):
        self.refresher._do('audit', check, config.refresh_policy)


class Camera:
    """Upkeep, its clock and what it decides about. There is credit for one and a half answers, unless told."""

    def __init__(self, asked_s=(0.0, 4.0), now_s=4.0, credit=600, lag_s=0.0, **given):
        self.now_s, self.meter, self.account = 0.0, Meter(), Account()
        self.refresher = Refresher(self.meter, **given)
        self.auditor = Auditor(self.refresher)
        vlm = SimpleNamespace(meter=self.meter)
        self.upkeep = Upkeep(vlm, self.refresher, self.auditor, self.account, 'front', lambda: self.now_s)
        for asked_at_s in asked_s:
            self.ask(asked_at_s, lag_s)
        self.now_s = now_s
        for _ in range(3):
            self.account.book_questions(Work(), [ANSWER], 1.0)
        self.pay(3 * 400 - credit)

    def ask(self, now_s, lag_s=0.0):
        self.now_s = now_s
        self.upkeep.note_question(replace(QUESTION, max_lag_s=lag_s))

    def pay(self, count):
        self.account.book_upkeep(Work(0, count, 0, float(count)))

    def work(self, config=CONFIG, check=go_on):
        return self.upkeep.work(config, check)

    @property
    def done(self):
        return [what[0] for what in self.refresher.done]


LIKELY = {'asked_s': (0.0, 0.1, 0.2), 'now_s': 0.2}  # a question within half a second is nearly certain


def likely(**given):
    return Camera(**(LIKELY | given))


def test_what_is_stale_is_refreshed_when_a_question_is_likely_and_credit_pays():
    camera = likely()
    assert camera.work(check='the check') == 0.0
    assert camera.refresher.done == [('refresh', False, 'the check')]


@pytest.mark.parametrize(
    'given',
    [
        {'newest': None},
        {'newest': Look(is_current=True)},
        {'state': None},
        {'work': None},
        {'credit': 99},
        {'asked_s': (), 'now_s': 0.2},
        {'asked_s': (0.2,)},
    ],
)
@pytest.mark.parametrize('share', [1.0, 1000.0])
def test_without_a_picture_a_state_a_change_or_credit_nothing_is_done(given, share):
    """And without questions too, unless the share asks for that."""
    camera = likely(**given)
    is_done = share == 1000 and 'asked_s' in given
    assert camera.work(Config(upkeep_share=share)) == (0.0 if is_done else None)
    assert camera.done == is_done * ['refresh']


@pytest.mark.parametrize('trusts', [True, False])
def test_a_refresh_may_patch_where_patched_states_are_trusted(trusts):
    camera = likely(credit=50)
    camera.auditor.trusts = trusts
    camera.refresher.work = Work(0, 100, 0, 10.0)  # a patch takes one token
    assert camera.work() == (0.0 if trusts else None)
    assert [what[1] for what in camera.refresher.done] == trusts * [True]


@pytest.mark.parametrize('share, is_done', [(0.0, False), (1.0, False), (1.01, True), (1000.0, True)])
def test_above_a_share_of_one_everything_that_is_stale_is_refreshed(share, is_done):
    camera = Camera(asked_s=(0.0, 1000.0), now_s=2000.0)  # nobody is likely to ask
    for _ in range(3):
        assert camera.work(Config(upkeep_share=share)) == (0.0 if is_done else None)
    assert camera.done == 3 * is_done * ['refresh']


def test_without_a_share_nothing_is_done():
    camera = likely(rollover_work=STAGE, has_overdue=True, newest=Look(still_s=9.0))
    camera.auditor.work, camera.now_s = STAGE, 50.0
    assert camera.work(Config(upkeep_share=0.0)) is None and camera.done == []
    assert camera.work(Config(upkeep_share=0.01)) == 0.0


@pytest.mark.parametrize('share', [0.0, 1.0])
@pytest.mark.parametrize('newest', [Look(), Look(is_current=True), None])
def test_a_refresh_between_its_stages_is_finished_first_even_when_credit_is_gone(share, newest):
    camera = Camera(asked_s=(), credit=-500, newest=newest, is_between_stages=True, rollover_work=STAGE)
    assert camera.work(Config(upkeep_share=share), 'the check') == 0.0
    assert camera.refresher.done == [('refresh', False, 'the check')]


def test_each_stage_is_booked_and_the_credit_ends_them():
    camera = likely(credit=250)
    assert [camera.work() for _ in range(3)] == [0.0, 0.0, None]
    assert camera.account.spent.tokens == 950 + 200 and not camera.account.covers_upkeep(Work(0, 51))


@pytest.mark.parametrize('chance, is_done', [(0.24, False), (0.26, True)])
def test_a_cheap_refresh_needs_a_likely_question(chance, is_done):
    """Two questions in a second: of the rate follows how long a second one takes to be so likely."""
    assert LEAST_LIKELY == 0.25
    camera = chance_camera(chance, work=Work(0, 1, 0, 1.0))
    assert camera.work() == (0.0 if is_done else None)


def chance_camera(chance, **given):
    """A question within half a second has this chance."""
    seconds = -0.5 / math.log(1 - chance)
    return Camera(**({'asked_s': (-seconds, 0.0), 'now_s': 0.0} | given))


@pytest.mark.parametrize('took', [100, 280, 400])
@pytest.mark.parametrize('more', [-0.01, 0.01])
def test_a_dear_refresh_needs_a_likelier_question(took, more):
    """A warm answer is worth a share of a cold one; a refresh that no question uses is lost."""
    assert WORTH == 0.7
    price = took / 400
    camera = chance_camera(price / (price + 0.7) + more, work=Work(0, 1, 0, float(took)))
    assert camera.work() == (0.0 if more > 0 else None)


@pytest.mark.parametrize('what, value', [('period_s', 1.0), ('still_s', 0.5), ('lag_s', 1.0)])
def test_the_longer_a_picture_serves_the_likelier_is_its_question(what, value):
    """Until the next picture, as long as its lag allows, and longer in a scene at rest."""
    assert chance_camera(0.2).work() is None
    if what == 'lag_s':
        camera = chance_camera(0.2)
        camera.ask(0.0, lag_s=value)  # again, which is two in no more time
        camera.upkeep._rhythm._asked_s.pop()
    else:
        camera = chance_camera(0.2, newest=Look(**{what: value}))
    assert camera.work() == 0.0


def test_a_scene_whose_state_was_lost_counts_as_moving():
    assert chance_camera(0.2, newest=Look(is_lost=True, still_s=9.0)).work() is None
    assert chance_camera(0.3, newest=Look(is_lost=True)).work() == 0.0


def test_lag_and_period_do_not_add_up():
    camera = chance_camera(0.2)
    camera.upkeep._allowed_lag_s = 0.5
    assert camera.work() is None


@pytest.mark.parametrize('lag_s, is_done', [(0.3, True), (0.9, True), (1.09, True), (1.11, False), (2.0, False)])
def test_a_state_that_still_serves_until_the_next_picture_is_not_refreshed(lag_s, is_done):
    """It has differed for 0.5 s, a refresh takes 0.1 s, and the next picture comes after 0.5 s."""
    camera = likely(lag_s=lag_s)
    assert camera.work() == (0.0 if is_done else None)
    assert likely(lag_s=lag_s, newest=Look(is_lost=True)).work() == 0.0  # there is nothing that could serve


def regular(now_s, **given):
    """Questions at 0, 2, 4 and 6 s."""
    return Camera(**({'asked_s': (0.0, 2.0, 4.0, 6.0), 'now_s': now_s} | given))


@pytest.mark.parametrize('now_s', [6.0, 7.0, 7.7, 7.749])
def test_a_refresh_waits_until_right_before_a_regular_question(now_s):
    """Which is due at 8 s; the refresh takes 0.1 s."""
    assert EARLY_S == 0.15
    camera = regular(now_s)
    assert camera.work() == pytest.approx(7.75 - now_s) and not camera.done
    camera.now_s = 8.0 - EARLY_S - 0.1
    assert camera.work() == 0.0 and camera.done == ['refresh']
    assert regular(now_s, credit=99).work() is None


def test_a_regular_question_that_comes_before_the_next_picture_is_certain():
    assert regular(7.8, newest=Look(period_s=0.3)).work() == 0.0
    assert regular(7.8, newest=Look(period_s=0.1)).work() is None  # the next picture will come before it


def test_a_rhythm_whose_question_stays_out_is_not_waited_for():
    assert regular(8.4).work() == 0.0
    assert regular(8.51).work() is None  # by the rate a question is not likely: 3 in 8.51 s


@pytest.mark.parametrize('credit, is_done', [(500, True), (499, False)])
def test_a_keyframe_that_is_due_is_computed_for_the_questions_of_its_interval(credit, is_done):
    """Where the credit of an answer is left after it."""
    config = Config(keyframe_interval_s=5.0)
    camera = Camera(credit=credit, has_keyframe=True)
    assert camera.work(config) == (0.0 if is_done else None) and camera.done == is_done * ['refresh']
    assert Camera(credit=credit).work(config) is None
    assert Camera(credit=credit, has_keyframe=True).work(Config(keyframe_interval_s=0.5)) is None


@pytest.mark.parametrize('credit, is_done', [(300, True), (299, False)])
def test_a_rollover_needs_its_price(credit, is_done):
    camera = Camera(credit=credit, newest=Look(is_current=True), rollover_work=Work(0, 300, 0, 10.0))
    assert camera.work(check='the check') == (0.0 if is_done else None)
    assert camera.refresher.done == is_done * [('rollover', 'the check')]


def patched(still_s=RESTED_S, credit=600, lag_s=0.0, **given):
    return Camera(credit=credit, lag_s=lag_s, has_overdue=True, newest=Look(is_current=True, still_s=still_s), **given)


@pytest.mark.parametrize('lag_s, history, answers', [(0.0, 0, 2), (1.0, 0, 1), (0.0, 2, 1), (1.0, 2, 1)])
def test_a_repair_leaves_the_credit_of_an_answer_or_of_two_where_it_saves_least(lag_s, history, answers):
    config, least = Config(history_frames=history), 100 + 400 * answers
    camera = patched(credit=least, lag_s=lag_s)
    assert camera.work(config, 'the check') == 0.0 and camera.refresher.done == [('refresh', False, 'the check')]
    assert patched(credit=least - 1, lag_s=lag_s).work(config) is None


def test_before_the_first_question_no_lag_is_allowed():
    assert patched(credit=899, asked_s=()).work() is None and patched(credit=900, asked_s=()).work() == 0.0


def test_a_repair_computes_the_picture_whole_whatever_may_be_patched():
    camera = patched(credit=900)
    camera.auditor.trusts = True
    assert camera.work() == 0.0 and camera.refresher.done[0][1] is False
    camera = patched(credit=899)  # a patch would be cheaper than what is left
    camera.auditor.trusts = True
    assert camera.work() is None


def test_only_a_patched_state_that_is_overdue_is_repaired_and_only_while_the_scene_rests():
    assert RESTED_S == 0.5
    assert patched(credit=1100).work() == 0.0 and patched(credit=1100, still_s=0.49).work() is None
    camera = patched(credit=1100)
    camera.refresher.has_overdue = False
    assert camera.work() is None
    camera = patched(credit=1100)
    camera.refresher.newest.is_current = False  # it waits for a refresh, and nobody is likely to ask
    camera.now_s = 1000.0
    assert camera.work() is None


def auditing(now_s, **given):
    camera = Camera(**({'newest': Look(is_current=True), 'now_s': now_s} | given))
    camera.auditor.work = Work(0, 300, 0, 10.0)
    return camera


def test_audits_wait_until_nobody_has_asked_for_a_second():
    assert QUIET_S == 1.0
    camera = auditing(4.25)
    assert camera.work() == 0.75 and not camera.done
    camera.now_s = 5.0
    assert camera.work(check='the check') == 0.0 and camera.refresher.done == [('audit', 'the check', 'auto')]
    assert camera.work(Config(refresh_policy='patch'), 'a check') == 0.0
    assert camera.refresher.done[1] == ('audit', 'a check', 'patch')


@pytest.mark.parametrize('credit, is_done', [(300, True), (299, False)])
def test_every_step_of_an_audit_needs_the_price_of_the_rest(credit, is_done):
    camera = auditing(6.0, credit=credit)
    assert camera.work() == (0.0 if is_done else None) and camera.done == is_done * ['audit']


@pytest.mark.parametrize('now_s, wait_s', [(6.25, 0.75), (6.9, 0.1)])
def test_of_a_refresh_and_an_audit_the_first_is_waited_for(now_s, wait_s):
    assert auditing(now_s, asked_s=(0.0, 2.0, 4.0, 6.0), newest=Look()).work() == pytest.approx(wait_s)
    camera = auditing(2.6, asked_s=(0.5, 1.0, 1.5, 2.0), newest=Look())  # due at 2.5 s; the audit at 3 s
    camera.now_s = 2.1
    assert camera.work() == pytest.approx(0.15)


def test_a_refresh_comes_before_a_rollover_and_that_before_a_repair_and_an_audit():
    camera = likely(credit=1200, rollover_work=STAGE, has_overdue=True)
    camera.auditor.work = STAGE
    camera.work()
    camera.refresher.newest = Look(is_current=True, still_s=1.0)
    camera.now_s = 9.0
    camera.work()
    camera.refresher.rollover_work = None
    camera.work()
    camera.refresher.has_overdue = False
    camera.work()
    assert camera.done == ['refresh', 'rollover', 'refresh', 'audit']
    camera.auditor.work = None
    assert camera.work() is None


def test_a_stage_that_had_to_stop_for_a_question_is_booked_and_done_again(caplog):
    camera = likely(credit=250, raises=Halt(Status.BUSY, 'A question waits.'))
    assert camera.work() == 0.0 and camera.account.spent.tokens == 950 + 100
    assert camera.work() == 0.0 and camera.done == ['refresh', 'refresh'] and not caplog.records


@pytest.mark.parametrize('error', [ImageError('size', 'too small'), RuntimeError('out of memory')])
def test_upkeep_that_fails_is_told_once_and_goes_on_with_the_next_picture(error, caplog):
    camera = likely(credit=1200, raises=error, rollover_work=STAGE)
    assert camera.work() == 0.0 and camera.account.spent.tokens == 100
    assert [camera.work() for _ in range(5)] == 5 * [None] and camera.done == ['refresh']
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "'front'" in record.getMessage() and record.exc_info[1] is error
    camera.refresher.raises, camera.refresher.newest = None, Look()
    assert camera.work() == 0.0 and camera.done == ['refresh', 'refresh'] and len(caplog.records) == 1


# With a model.


def at(stamp_s, by=0x80):
    rgb = picture(1).rgb.copy()
    rgb[:100, :100] ^= by
    return replace(picture(1), rgb=rgb, stamp_ns=int(stamp_s * SECOND_NS))


def asked_once(vlm, **values):
    session = SceneSession(vlm, Config(audit_share=0.0, **({'upkeep_share': 1000.0} | values)), clock=Idle())
    session.look(at(0, 0))
    assert session.ask(QUESTION, now_ns=0).status == Status.OK
    return give_credit(session)


@pytest.mark.parametrize('error', [ImageError('size', 'too small'), RuntimeError('out of memory')])
@pytest.mark.parametrize('stage', ['encode', 'forward'])
def test_a_model_that_fails_in_upkeep_is_told_once_and_asked_again_by_the_next_question(
    vlm, monkeypatch, caplog, error, stage
):
    session, calls = asked_once(vlm), []

    def fail(*_, **__):
        calls.append(1)
        raise error

    session.look(at(1.0))
    with monkeypatch.context() as patch:
        patch.setattr(vlm.family, stage, fail)
        for _ in range(5):
            while session.work() == 0:
                assert len(calls) < 3
    assert len(calls) == len(caplog.records) == 1 and session.work() is None
    session.look(at(2.0))
    assert (session.work() == 0) == (stage == 'encode' and isinstance(error, ImageError))
    answer = session.ask(QUESTION, now_ns=2 * SECOND_NS)
    assert answer.status == Status.OK and answer.stamp_ns == 2 * SECOND_NS and answer.exact
    assert answer.token_ids == session.ask_cold(QUESTION, now_ns=2 * SECOND_NS).token_ids


@pytest.mark.parametrize('policy', ['exact', 'patch'])
def test_a_question_between_the_stages_is_answered_from_the_kept_state_and_the_refresh_goes_on(vlm, policy):
    session = asked_once(vlm, refresh_policy=policy, min_confidence=1e-9, min_text_confidence=1e-9)
    session.look(at(1.0))
    assert session.work() == 0 and session._refresher.is_between_stages
    kept = session.ask(replace(QUESTION, text='where is it ?', max_lag_s=5.0), now_ns=SECOND_NS)
    assert kept.level == Level.REUSE and kept.cached_stamp_ns == 0 and kept.lag_s == 1
    assert session._refresher.is_between_stages
    use_up_credit(session)
    before = vlm.meter.done
    assert session.work() == 0 and not session._refresher.is_between_stages
    assert (vlm.meter.done - before).vision_tokens == 0 < (vlm.meter.done - before).prefill_tokens
    assert session.newest is session._refresher.state.live.frame and session._refresher.newest.is_current
    assert session.work() is None


@pytest.mark.parametrize('has_credit', [True, False])
def test_the_credit_of_one_picture_keeps_regular_questions_about_a_moving_scene_warm(vlm, has_credit):
    """A picture every 0.2 s, and a question every 2 s. Without that credit each question pays for its own picture."""
    clock, answers, refreshes = Idle(), [], []
    session = SceneSession(
        vlm,
        Config(audit_share=0.0),
        on_refresh=lambda _, record: refreshes.append(record),
        clock=clock,
        measures_time=False,
    )
    if has_credit:
        session._account.book_questions(Work(), [Work(12, 25)], 1.0)
    for tick in range(200):
        clock.now_s = tick / 10
        if tick % 2 == 0:
            session.look(picture(tick, clock.now_s))
        if tick % 20 == 19:
            answers.append(session.ask(QUESTION, now_ns=int(clock.now_s * SECOND_NS)))
        while session.work() == 0:
            pass
    assert all(answer.status == Status.OK and answer.lag_s == 0 for answer in answers)
    assert {answer.level for answer in answers[5:]} == {Level.REUSE if has_credit else Level.FRAME}
    assert sum(record.level != Level.REUSE for record in refreshes) <= len(answers) + 1
    assert session._account.spent.tokens <= session._account.cold.tokens


def test_upkeep_patches_only_for_questions_that_patched_states_answer():
    for question, may_patch in ((QUESTION, True), (replace(QUESTION, json_schema='{}'), False)):
        camera = likely(credit=10_000)
        camera.auditor.trusts = True
        camera.upkeep.note_question(question)
        camera.work(Config(refresh_policy='patch'))
        assert camera.refresher.done[0][1] is may_patch
