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

"""Whatever came before, in whatever order: the warm answer is the cold one."""

import itertools
import threading
from concurrent.futures import CancelledError
from dataclasses import fields, replace

import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is missing: pip install hypothesis')
from credit import give_credit
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from patience import PATIENCE_S
from tiny_model import picture
from tiny_qwen3 import write_tiny_qwen3

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.model.work import Meter
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.serving.worker import ModelWorker
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Halt, Turn

QUESTIONS = st.sampled_from(
    [
        Question('what color is the square ?', max_tokens=4),
        Question('where ?', choices=('left', 'right', 'top')),
        Question('how many objects are there in the picture ?', max_tokens=1),
        Question('describe it', force_refresh=True),
        Question('what ?', max_age_s=0.5),
        Question('what is there ?', max_tokens=2, max_lag_s=2.0),
        Question(''),
        Question('<|image_pad|>'),
        Question('a' * 3000),
    ]
)
OUTCOME = [field.name for field in fields(Outcome)]
FINAL = Question('what color is the square ?', max_tokens=6, max_age_s=1e6)
CONFIGS = st.builds(
    Config,
    history_frames=st.integers(0, 2),
    keyframe_interval_s=st.just(0.0),
    audit_share=st.just(1.0),
    refresh_policy=st.sampled_from(['exact', 'patch']),
    budget_ms=st.sampled_from([0.0, 0.0, 1.5]),  # then one stage of the model fits, and a whole picture does not
    upkeep_share=st.sampled_from([0.0, 1.0, 1000.0]),
    max_lag_s=st.sampled_from([0.0, 3.0]),
    max_patch_share=st.just(1.0),
    min_confidence=st.sampled_from([0.0, 0.7]),
)
SEEDS, SIZES = st.integers(1, 4), st.sampled_from([(480, 640), (480, 640), (480, 640), (320, 320)])
STATE_MACHINE = settings(max_examples=15, stateful_step_count=12)


class Counted:
    """A check that stops at its n-th call."""

    def __init__(self, calls, error):
        self.calls, self.error = calls, error

    def __call__(self):
        self.calls -= 1
        if self.calls <= 0:
            raise self.error
        return False


def make_session_machine(vlm):
    """A session by itself: everything that can happen to it, on one thread. Every step of the model takes 1 ms."""

    class SessionMachine(RuleBasedStateMachine):
        @initialize(config=CONFIGS)
        def begin(self, config):
            ticks = itertools.count()
            self.now_s, vlm.meter = 0.0, Meter(clock=lambda: next(ticks) / 1000)
            self.session = SceneSession(vlm, config, clock=lambda: self.now_s, measures_time=False)

        @rule(config=CONFIGS)
        def configure(self, config):
            self.session.config = config

        @rule(seed=SEEDS, size=SIZES, force=st.booleans())
        def observe(self, seed, size, force):
            self.now_s += 1.0
            self.session.observe(picture(seed, self.now_s, size), force=force)

        @rule(seed=SEEDS, size=SIZES, later_s=st.sampled_from([1.0, 0.3, -0.4]))
        def look(self, seed, size, later_s):
            self.now_s = max(0.0, self.now_s + later_s)
            before, frame = self.session.newest, picture(seed, self.now_s, size)
            is_skipped = before is not None and before.size == frame.size and frame.stamp_ns < before.stamp_ns
            assert (self.session.look(frame) is None) == (is_skipped and before.stamp_ns - frame.stamp_ns <= 10**9)

        @rule(seed=SEEDS)
        def ask_with_a_picture_that_waits(self, seed):
            self.now_s += 1.0
            self.asked(FINAL, newest=lambda: picture(seed, self.now_s))

        @precondition(lambda self: self.session.newest is not None)
        @rule(grey=st.integers(0, 255), left=st.integers(0, 5), calls=st.integers(1, 30))
        def change_a_little(self, grey, left, calls):
            """What can be patched, unless it is given up."""
            self.now_s += 1.0
            rgb = self.session.newest.rgb.copy()
            rgb[100:150, 40 * left : 40 * left + 50] = grey
            try:
                self.session.observe(
                    Frame(rgb, stamp_ns=int(self.now_s * 1e9)),
                    check=Counted(calls, Halt(Status.CANCELLED, 'enough')),
                )
            except Halt:
                pass

        @rule(seed=SEEDS, calls=st.integers(1, 6))
        def give_a_refresh_up(self, seed, calls):
            self.now_s += 1.0
            try:
                self.session.observe(
                    picture(seed, self.now_s),
                    force=True,
                    check=Counted(calls, Halt(Status.CANCELLED, 'enough')),
                )
            except Halt:
                pass

        @rule(seed=SEEDS)
        def go_back_in_time(self, seed):
            self.now_s = max(0.0, self.now_s - 5.0)
            self.session.observe(picture(seed, self.now_s))

        @rule(question=QUESTIONS, cold=st.booleans())
        def ask(self, question, cold):
            self.asked(question, cold)

        def asked(self, question, cold=False, **arguments):
            """What every answer says of itself must be true."""
            ask = self.session.ask_cold if cold else self.session.ask
            # A stamp may jitter back; the clock of who asks does not, and what was seen by then counts.
            seen_ns = self.session.newest.stamp_ns if self.session.newest else 0
            answer = ask(question, now_ns=max(int(self.now_s * 1e9), seen_ns), **arguments)
            assert answer.status in Status and (answer.status is Status.OK or not answer.exact)
            if answer.status is Status.OK:
                config, newest = self.session.config, self.session.newest
                assert answer.stamp_ns <= newest.stamp_ns
                assert answer.exact or config.refresh_policy == 'patch'
                if not config.budget_ms:  # else the state may be of two pictures
                    assert answer.cached_stamp_ns <= answer.stamp_ns
                    assert answer.lag_s <= (question.max_lag_s or config.max_lag_s)
                    assert answer.lag_s or answer.stamp_ns == newest.stamp_ns
            if answer.remembered:
                again = vars(self.compute_again(question))
                for name in OUTCOME:  # it may have been computed in one pass with a picture, which rounds otherwise
                    is_score = name in ('confidence', 'choice_scores')
                    expected = pytest.approx(again[name], abs=1e-4) if is_score else again[name]
                    assert getattr(answer, name) == expected
            return answer

        def compute_again(self, question):
            """What the state answers now, without a look or a refresh."""
            answerer, state = self.session._responder._answerer, self.session._refresher.state
            return answerer.answer(state, answerer.tokenize(question, self.session.config), Turn())

        @rule(question=QUESTIONS, calls=st.integers(1, 8))
        def cancel(self, question, calls):
            left = Counted(calls, None)

            def cancelled():
                left.calls -= 1
                return left.calls <= 0

            self.session.ask(question, now_ns=int(self.now_s * 1e9), turn=Turn(cancelled=cancelled))

        @rule(question=QUESTIONS, calls=st.integers(1, 5))
        def fail(self, question, calls):
            """The model raises in the middle of an answer."""
            left = Counted(calls, RuntimeError('the device is gone'))

            def failing(original):
                def run(*args, **kwargs):
                    left()
                    return original(*args, **kwargs)

                return run

            for name in ('run', 'run_tree'):
                setattr(vlm, name, failing(getattr(vlm, name)))
            try:
                self.session.ask(question, now_ns=int(self.now_s * 1e9))
            finally:
                del vlm.run, vlm.run_tree

        @rule(calls=st.integers(1, 9))
        def idle(self, calls):
            """Until a question comes."""
            check = Counted(calls, Halt(Status.BUSY, 'a question'))
            self.now_s += 0.5
            for _ in range(3):
                spent = vlm.meter.done
                wait_s = self.session.work(check)
                assert wait_s == 0 or vlm.meter.done == spent

        @rule()
        def earn(self):
            give_credit(self.session)

        @rule()
        def reset(self):
            self.session.reset()
            assert self.session.ask(FINAL, now_ns=0).status is Status.NO_IMAGE

        @precondition(lambda self: self.session.newest is not None)
        @rule()
        def warm_equals_cold(self):
            """Not after every rule: an answer also pays for what was given up before."""
            self.compared(FINAL)

        def compared(self, question):
            warm, cold = (self.asked(question, cold) for cold in (False, True))
            assert warm.status is cold.status is Status.OK, (warm.message, cold.message)
            assert (warm.token_ids == cold.token_ids) or not warm.exact
            return warm

        def teardown(self):
            if not hasattr(self, 'session') or self.session.newest is None:
                return
            self.compared(FINAL)
            exact = self.compared(replace(FINAL, force_refresh=True))
            auditor = self.session._auditor
            while auditor._waiting:
                auditor.step(lambda: None, self.session.config)
            assert exact.exact and self.session.status.audits.exact_drifted == 0
            if self.session.status.frames == 1:  # then nothing but the newest picture counts
                fresh = SceneSession(vlm, replace(self.session.config, refresh_policy='exact'))
                fresh.observe(self.session.newest)
                assert fresh.ask(FINAL, now_ns=0).token_ids == exact.token_ids

    return SessionMachine


def make_worker_machine(model_dir):
    """The model's thread, with planners and cameras on this one."""

    class WorkerMachine(RuleBasedStateMachine):
        @initialize()
        def begin(self):
            self.config = Config(model=str(model_dir), cameras=('a', 'b'), queue_size=4, upkeep_share=1000.0)
            self.worker, self.now_s = ModelWorker(self.config), 0.0
            self.worker.start()
            self.open = []

        @rule(seed=SEEDS, camera=st.sampled_from('ab'))
        def observe(self, seed, camera):
            self.now_s += 1.0
            if camera in self.config.cameras:
                self.worker.observe(picture(seed, self.now_s, camera=camera))

        @rule(question=QUESTIONS, camera=st.sampled_from(['', 'a', 'b', 'c']), cold=st.booleans())
        def ask(self, question, camera, cold):
            event = threading.Event()
            ask = self.worker.ask_cold if cold else self.worker.ask
            self.open.append((ask(camera, question, int(self.now_s * 1e9), event), event))

        @precondition(lambda self: self.open)
        @rule(data=st.data(), by_event=st.booleans())
        def cancel(self, data, by_event):
            future, event = data.draw(st.sampled_from(self.open))
            event.set() if by_event else future.cancel()

        @rule(cameras=st.sampled_from([('a',), ('a', 'b'), ('b', 'a')]))
        def follow(self, cameras):
            self.config = self.config.with_values(cameras=cameras)
            self.worker.configure(self.config)

        @rule(camera=st.sampled_from(['', 'a', 'b']))
        def reset(self, camera):
            self.worker.reset(camera)

        def teardown(self):
            if not hasattr(self, 'worker'):
                return
            try:
                self.every_question_is_answered()
                self.the_next_answer_is_the_cold_one()
            finally:
                self.worker.stop()

        def every_question_is_answered(self):
            for future, _ in self.open:
                try:
                    assert future.result(PATIENCE_S).status in Status
                except CancelledError:
                    pass

        def the_next_answer_is_the_cold_one(self):
            self.worker.observe(picture(9, self.now_s + 1.0, camera='a'))
            fresh = replace(FINAL, force_refresh=True)  # it takes the picture that waits
            warm, cold = (ask('a', fresh, 0).result(PATIENCE_S) for ask in (self.worker.ask, self.worker.ask_cold))
            assert warm.status is cold.status is Status.OK and warm.token_ids == cold.token_ids

    return WorkerMachine


def test_a_session(vlm, monkeypatch):
    monkeypatch.setattr(vlm, 'meter', vlm.meter)  # put back afterwards
    hypothesis.stateful.run_state_machine_as_test(make_session_machine(vlm), settings=STATE_MACHINE)


def test_a_session_of_a_recurrent_model(tmp_path_factory):
    """Its patches go back to a checkpoint."""
    vlm = load(str(write_tiny_qwen3(tmp_path_factory.mktemp('models') / 'qwen3_5', 'qwen3_5')))
    few = settings(STATE_MACHINE, max_examples=10)
    hypothesis.stateful.run_state_machine_as_test(make_session_machine(vlm), settings=few)


def test_the_models_thread(model_dir):
    hypothesis.stateful.run_state_machine_as_test(make_worker_machine(model_dir), settings=STATE_MACHINE)
