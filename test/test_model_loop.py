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

"""The loop of the model's thread, driven step by step on pytest's thread: turns of upkeep, and who waits for whom."""

import itertools
from dataclasses import replace

import pytest
from forgetful import forgetful
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.serving.inbox import Inbox
from vlm_reuse_node.serving.model_loop import ModelLoop
from vlm_reuse_node.serving.queued_question import QueuedQuestion
from vlm_reuse_node.serving.worker_stats import Tally
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.session_status import SessionStatus

QUESTION = Question('what color is the square ?', max_tokens=4)
MUCH = {'upkeep_share': 1000.0, 'audit_share': 0.0}


def make_loop(vlm=None, **values):
    """A loop that has the model already; what it refreshes is in `refreshes`."""
    refreshes = []
    loop = ModelLoop(Config(**values), Inbox(), Tally(), lambda frame, refresh: refreshes.append(refresh), None, None)
    loop._vlm, loop.refreshes = vlm, refreshes
    return loop


def step(loop, count=1):
    """Let it work, without waiting for anything to come."""
    for _ in range(count):
        loop._inbox.wake()
        loop._step()


def see(loop, frame):
    """Look at a frame, as the looks do, or as the model's thread does with a first one."""
    session = loop._session(frame.camera)
    loop.look(session, frame)


def ask(loop, camera, question=QUESTION, now_ns=0):
    queued = QueuedQuestion(camera, question, now_ns)
    assert loop._inbox.put_question(queued, 99)
    return queued.future


class Stages:
    """A session with so many stages of upkeep due; `done` are the stages of all sessions, by camera."""

    status = SessionStatus()

    def __init__(self, camera, due, done, wait_s=None, then=lambda: None):
        self.camera, self.due, self.done, self.wait_s, self.then = camera, due, done, wait_s, then

    def work(self, check):
        if not self.due:
            return self.wait_s
        self.due -= 1
        self.done.append(self.camera)
        self.then()
        return 0.0


def test_cameras_take_turns_in_upkeep_one_stage_each():
    loop, done = make_loop(cameras=('a', 'b', 'c')), []
    loop._sessions = {camera: Stages(camera, due, done) for camera, due in (('a', 4), ('b', 2), ('c', 3))}
    step(loop, 9)
    assert done == ['a', 'b', 'c', 'a', 'b', 'c', 'a', 'c', 'a']


def test_questions_between_stages_change_no_turns():
    """A camera that is first in the list has no more of the stages when every stage is followed by a question."""
    loop, done = make_loop(cameras=('a', 'b')), []
    loop._sessions = {camera: Stages(camera, 3, done) for camera in 'ab'}
    loop._serve = lambda queued: None
    for _ in range(6):
        ask(loop, 'a')
        step(loop)
    assert done == ['a', 'b'] * 3


def test_no_stage_is_begun_while_a_question_waits():
    """A question that comes during a stage waits for that one, and not for the next camera's."""
    loop, done = make_loop(cameras=('a', 'b')), []
    loop._sessions = {camera: Stages(camera, 9, done, then=lambda: ask(loop, 'a')) for camera in 'ab'}
    loop._serve = lambda queued: done.append('question')
    step(loop, 6)
    assert done == ['a', *['question', 'b', 'question', 'a'] * 2, 'question', 'b'][: len(done)] and len(done) > 6


@pytest.mark.parametrize('waits_s, until_s', [((None, None), None), ((3.0, None), 3.0), ((3.0, 0.5), 0.5)])
def test_the_loop_waits_until_the_first_stage_may_be_due(waits_s, until_s):
    loop = make_loop(cameras=('a', 'b'))
    loop._sessions = {camera: Stages(camera, 0, [], wait_s) for camera, wait_s in zip('ab', waits_s)}
    step(loop)
    assert loop._wait_s == until_s
    loop._sessions['a'].due = 1
    step(loop)
    assert loop._wait_s == 0  # there may be another stage


def test_a_camera_that_leaves_does_not_disturb_the_turns():
    loop, done = make_loop(cameras=('a', 'b', 'c')), []
    loop._sessions = {camera: Stages(camera, 9, done) for camera in 'abc'}
    step(loop, 2)
    del loop._sessions['b']  # the one that had the last turn
    step(loop, 3)
    assert done[:2] == ['a', 'b'] and sorted(done[2:4]) == ['a', 'c'] and done[4] == done[2]


def upkeep_of(vlm, cameras, **values):
    """A loop whose cameras were asked once, and have seen another picture since."""
    loop = make_loop(vlm, cameras=cameras, **MUCH | values)
    for camera in cameras:
        see(loop, picture(1, camera=camera))
        future = ask(loop, camera)
        while not future.done():
            loop._inbox.wake()
            loop._do(loop._inbox.next(0))
    for camera in cameras:
        see(loop, picture(2, stamp_s=1, camera=camera))
    loop.refreshes.clear()
    return loop


def test_real_cameras_refresh_in_turns_and_both_are_done(vlm):
    loop = upkeep_of(vlm, ('a', 'b'))
    sessions = [loop._sessions[camera] for camera in 'ab']
    between = []
    for _ in range(4):
        step(loop)
        between.append([session._refresher.is_between_stages for session in sessions])
    assert between == [[True, False], [True, True], [False, True], [False, False]]
    assert [(refresh.camera, refresh.level) for refresh in loop.refreshes] == [('a', Level.FRAME), ('b', Level.FRAME)]
    spent = vlm.meter.done
    step(loop, 4)
    assert vlm.meter.done == spent  # nothing is stale any more


STEPS = 'see', 'run', 'run_tree', 'decode'


@pytest.fixture
def steps(vlm, monkeypatch):
    """What the model does: names of its steps. `on_step` is called at the begin of each."""
    done, hooks = [], []

    def watched(name, method):
        def call(*args, **kwargs):
            done.append(name)
            for hook in list(hooks):
                hook(name)
            return method(*args, **kwargs)

        return call

    for name in STEPS:
        monkeypatch.setattr(vlm, name, watched(name, getattr(vlm, name)))
    done_and_hooks = type('Steps', (), {'done': done, 'hooks': hooks})
    return done_and_hooks


@pytest.mark.parametrize('stage', ['see', 'run'])
def test_a_question_waits_for_at_most_one_stage_of_a_refresh_it_does_not_need(vlm, steps, stage):
    """It comes in the middle of either stage; two cameras have more upkeep due."""
    loop = upkeep_of(vlm, ('a', 'b'))
    futures, steps_at = [], []

    def come(name):
        if name == stage and not futures:
            futures.append(ask(loop, 'a', replace(QUESTION, text='where is it ?', max_lag_s=60.0), SECOND_NS))
            steps_at.append(len(steps.done))

    forgetful(loop._sessions['a'])
    steps.done.clear()
    steps.hooks.append(come)
    while not futures:
        step(loop)
    begun = len(steps.done)
    assert steps_at[0] == begun  # nothing was begun but the stage that was running
    step(loop)
    assert futures[0].result().status is Status.OK and futures[0].result().level is Level.REUSE
    assert steps.done[begun : begun + 2] == ['run_tree', 'decode']  # then the question, and its decoding


def test_a_refresh_that_was_interrupted_between_its_stages_is_not_begun_again(vlm, steps):
    loop = upkeep_of(vlm, ('a',))
    step(loop)
    assert steps.done[-1] == 'see' and loop._sessions['a']._refresher.is_between_stages
    kept = ask(loop, 'a', replace(QUESTION, text='where is it ?', max_lag_s=60.0), SECOND_NS)
    step(loop)  # the answer, and then the second stage
    assert kept.result().stamp_ns == 0 and kept.result().lag_s > 0 and kept.result().level is Level.REUSE
    assert (
        steps.done.count('see') == 2 and loop.refreshes[-1].level is Level.FRAME
    )  # one of the set-up, one of the refresh


def test_a_question_that_needs_the_refresh_takes_over_what_was_begun(vlm, steps):
    loop = upkeep_of(vlm, ('a',))
    step(loop)
    seen = steps.done.count('see')
    fresh = ask(loop, 'a', now_ns=SECOND_NS)
    step(loop)
    assert fresh.result().stamp_ns == SECOND_NS and fresh.result().level is Level.FRAME
    assert steps.done.count('see') == seen


def test_credit_of_cameras_is_apart(vlm):
    """What one camera has earned is not spent on another."""
    loop = make_loop(vlm, cameras=('a', 'b'), upkeep_share=1.0, audit_share=0.0)
    for number in range(100):  # after the first time, the answer is remembered
        for camera in 'ab':
            see(loop, picture(1, stamp_s=number, camera=camera))
        ask(loop, 'a', now_ns=number * SECOND_NS)
        step(loop)
    totals = {camera: loop._sessions[camera].status.totals for camera in 'ab'}
    assert totals['a'].credit_ms > 0 and totals['a'].cold_ms > totals['a'].work_ms > 0
    assert totals['b'].credit_ms == totals['b'].work_ms == totals['b'].cold_ms == 0


def test_every_camera_keeps_within_its_own_share_however_they_are_asked(vlm):
    loop = make_loop(vlm, cameras=('a', 'b'), upkeep_share=1.0, audit_share=0.5)
    first = {}
    for number, camera in zip(range(40), itertools.cycle('aab')):
        for each in 'ab':
            see(loop, picture(number // 3, stamp_s=number, camera=each))
        ask(loop, camera, replace(QUESTION, text=QUESTION.text + ' ?' * number), number * SECOND_NS)
        step(loop, 3)
        session = loop._sessions[camera]
        spent, cold = session._account.spent.tokens, session._account.cold.tokens
        first.setdefault(camera, spent)
        assert spent <= cold + first[camera]
