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

"""The worker: newest frame, order, refusals, cancelling, failures. Every wait is on an event.

test_model_loop.py drives the loop step by step; test_worker_looks.py is about pictures that come meanwhile.
"""

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest
from patience import PATIENCE_S, wait_for
from tiny_model import SECOND_NS, picture
from working import QUESTION, answer, forget, hold_a_question, levels, show

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, ImageError, ModelError
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.serving.worker import ModelWorker
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.drift_audit import DriftAudit
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.upkeep import QUIET_S

OTHER = replace(QUESTION, max_tokens=7)  # another question, whose answer begins alike


@pytest.fixture
def worker(make_worker):
    """A worker whose one camera has shown picture 1."""
    worker = make_worker(queue_size=2)
    show(worker, picture(1))
    return worker


def test_a_warm_answer_equals_the_cold_one(worker):
    first = answer(worker, Question('what is this ?'))
    warm, cold = answer(worker), answer(worker, ask=worker.ask_cold)
    assert first.status == warm.status == cold.status == Status.OK
    assert warm.token_ids == cold.token_ids and not warm.remembered
    assert warm.tokens_reused > 0 == cold.tokens_reused == first.tokens_reused and warm.queue_ms >= 0


def test_a_full_queue_is_busy_at_once(worker, brake):
    held = hold_a_question(worker, brake)
    waiting = [worker.ask('', QUESTION, 0) for _ in range(2)]
    refused = worker.ask('', QUESTION, 0)
    assert refused.done() and refused.result().status == Status.BUSY and '2 questions' in refused.result().message
    assert worker.stats().waiting == {'camera': 2}
    brake.go_on.set()
    assert {future.result(PATIENCE_S).status for future in (held, *waiting)} == {Status.OK}
    assert worker.stats().answers == {'OK': 3, 'BUSY': 1}
    assert worker.stats().remembered == 1  # the two that waited asked the same


def test_a_question_is_answered_from_the_frame_before_it_unless_it_allows_a_lag(worker, brake):
    answer(worker)
    for stamp_s, (question, is_newest) in enumerate(
        (
            (QUESTION, True),
            (replace(QUESTION, max_age_s=0.5), True),
            (replace(QUESTION, max_lag_s=60.0), False),
            (replace(QUESTION, max_lag_s=60.0, max_age_s=0.5), True),
            (replace(QUESTION, max_lag_s=60.0, force_refresh=True), True),
        ),
        start=1,
    ):
        held = hold_a_question(worker, brake)
        before_ns = worker._loop.session('camera').newest.stamp_ns
        worker.observe(picture(10 + stamp_s, stamp_s=stamp_s))
        future = worker.ask('', question, stamp_s * SECOND_NS + 1)
        brake.go_on.set()
        held.result(PATIENCE_S)
        given = future.result(PATIENCE_S)
        assert given.stamp_ns == (stamp_s * SECOND_NS if is_newest else before_ns), (question, given)
        assert (given.level == Level.REUSE) == (given.lag_s > 0) == (not is_newest)


def test_the_first_question_takes_the_waiting_frame(make_worker):
    worker = make_worker()
    assert answer(worker).status == Status.NO_IMAGE
    worker.observe(picture(1))
    assert answer(worker).status == Status.OK


def test_cancelling_by_event_stops_at_the_next_token(worker, brake):
    event = threading.Event()
    held = hold_a_question(worker, brake, cancel=event)
    event.set()
    brake.go_on.set()
    assert held.result(PATIENCE_S).status == Status.CANCELLED
    assert answer(worker).token_ids == answer(worker, ask=worker.ask_cold).token_ids


def test_cancelling_the_future_works_while_it_runs_and_while_it_waits(worker, brake):
    held = hold_a_question(worker, brake)
    waiting = worker.ask('', QUESTION, 0)
    assert waiting.cancel() and held.cancel()
    brake.go_on.set()
    assert answer(worker).status == Status.OK
    with pytest.raises(CancelledError):
        held.result(PATIENCE_S)
    assert worker.stats().answers == {'CANCELLED': 2, 'OK': 1}


def test_the_time_in_the_queue_counts(worker, brake):
    held = hold_a_question(worker, brake)
    late = worker.ask('', replace(QUESTION, timeout_s=1e-6), 0)
    brake.go_on.set()
    # Turned away between two tokens of the running answer, not after it.
    assert late.result(PATIENCE_S).status == Status.TIMEOUT and late.result().queue_ms > 0
    assert held.result(PATIENCE_S).status == Status.OK


def test_a_stop_does_not_wait_for_the_rest_of_a_refresh(worker, brake, monkeypatch):
    monkeypatch.setattr('vlm_reuse_node.model.vlm.PREFILL_CHUNK', 8)  # so that there is a rest
    held = hold_a_question(worker, brake)  # it pays for the first picture
    begun = brake.passes
    close = worker._inbox.close
    monkeypatch.setattr(worker._inbox, 'close', lambda: (close(), brake.go_on.set()))
    worker.stop()
    assert held.result(PATIENCE_S).status == Status.CANCELLED
    assert brake.passes == begun and worker.stats().last_error == ''


def test_who_is_late_or_cancelled_does_not_wait_for_a_refresh(worker, brake, monkeypatch):
    monkeypatch.setattr('vlm_reuse_node.model.vlm.PREFILL_CHUNK', 8)
    passes, held = [], hold_a_question(worker, brake)
    begun = brake.passes
    waiting = worker.ask('', replace(QUESTION, timeout_s=1e-6), 0)
    waiting.add_done_callback(lambda done: passes.append(brake.passes))
    brake.go_on.set()
    assert waiting.result(PATIENCE_S).status == Status.TIMEOUT and passes == [begun]
    assert held.result(PATIENCE_S).status == Status.OK and brake.passes > begun + 1


def test_a_failing_model_is_an_answer_and_then_it_answers_right_again(worker, brake):
    expected = answer(worker)
    forget(worker)
    brake.failing = True
    failed = answer(worker, OTHER)
    assert failed.status == Status.MODEL_ERROR and 'the device is gone' in failed.message
    show(worker, picture(1, stamp_s=1))
    assert 'the device is gone' in worker.stats().last_error  # a look says nothing about the model
    assert answer(worker).status == Status.MODEL_ERROR  # the state is lost, and all answers with it
    brake.failing = False
    assert answer(worker).token_ids == expected.token_ids
    assert worker.stats().last_error == ''
    show(worker, picture(2, stamp_s=2))
    assert answer(worker).token_ids == answer(worker, ask=worker.ask_cold).token_ids


def test_a_picture_the_model_cannot_take_stops_nothing(worker):
    worker.observe(Frame(np.zeros((1, 900, 3), np.uint8), stamp_ns=1))
    forced = answer(worker, replace(QUESTION, force_refresh=True))
    assert forced.status == Status.OK and forced.stamp_ns == 0
    show(worker, picture(3, stamp_s=1))
    assert answer(worker, now_ns=SECOND_NS).stamp_ns == SECOND_NS


def test_a_picture_the_model_cannot_take_is_a_refusal_of_its_camera(model_dir):
    refused, counted = [], threading.Semaphore(0)

    def on_refused(frame, error):
        refused.append((frame, error))
        counted.release()
        raise ValueError('nobody listens')

    worker = ModelWorker(Config(model=str(model_dir)), on_refused=on_refused)
    worker.start()
    worker.observe(picture(1))
    before = answer(worker)
    wide = Frame(np.zeros((4, 1024, 3), np.uint8), stamp_ns=1)
    worker.observe(wide)
    assert counted.acquire(timeout=PATIENCE_S)  # while no question waits
    after = answer(worker, OTHER)
    worker.observe(wide)
    forced = answer(worker, replace(OTHER, max_tokens=8, force_refresh=True))  # in a question's turn
    worker.stop()
    assert [frame for frame, _ in refused] == [wide, wide] and isinstance(refused[0][1], ImageError)
    assert before.token_ids == after.token_ids[:6] == forced.token_ids[:6]
    assert after.tokens_reused > 0 and forced.tokens_reused > 0 and worker.stats().last_error == ''


def test_a_question_of_wrong_types_stops_nothing(worker):
    assert answer(worker, Question('what ?', max_age_s='soon')).status == Status.INVALID_REQUEST
    assert answer(worker, Question(None)).status == Status.INVALID_REQUEST
    assert answer(worker).status == Status.OK


def test_cameras_are_apart(make_worker):
    worker = make_worker(cameras=('left', 'right'))
    show(worker, picture(1, camera='left'), picture(2, camera='right'))
    left, right = answer(worker, camera='left'), answer(worker, camera='right')
    assert left.token_ids != right.token_ids and (left.camera, right.camera) == ('left', 'right')
    assert answer(worker).camera == 'left' and answer(worker, camera='left').token_ids == left.token_ids
    unknown = worker.ask('up', QUESTION, 0)
    assert unknown.result().status == Status.INVALID_REQUEST and 'left, right' in unknown.result().message
    with pytest.raises(ImageError, match='left, right'):
        worker.observe(picture(1, camera='up'))


def test_a_reset_forgets_the_waiting_frame_too(worker, brake):
    held = hold_a_question(worker, brake)
    worker.observe(picture(2, stamp_s=1))
    worker.reset()
    brake.go_on.set()
    held.result(PATIENCE_S)
    assert answer(worker).status == Status.NO_IMAGE
    show(worker, picture(1))
    assert answer(worker).status == Status.OK and levels(worker)[-2:] == [Level.REUSE, Level.FULL]


def test_a_shorter_history_is_computed_while_nothing_waits(make_worker):
    worker = make_worker(history_frames=2, keyframe_interval_s=0.0, upkeep_share=1000.0)
    for seed in range(4):
        show(worker, picture(seed, stamp_s=seed))
        assert answer(worker, now_ns=seed * SECOND_NS).status == Status.OK
    while not any(refresh.reason == 'history rollover' for _, refresh in worker.refreshes):
        assert worker.counted.acquire(timeout=PATIENCE_S)
    warm, cold = (answer(worker, now_ns=3 * SECOND_NS, ask=ask) for ask in (worker.ask, worker.ask_cold))
    assert warm.token_ids == cold.token_ids and warm.stamp_ns == 3 * SECOND_NS
    session = worker.stats().sessions['camera']
    assert session.frames == 2 and session.held_bytes > 0


def test_an_answer_is_audited_once_nobody_asks_and_pictures_go_on(make_worker, monkeypatch):
    counted, count = threading.Event(), DriftAudit.add
    monkeypatch.setattr(DriftAudit, 'add', lambda *given: (count(*given), counted.set()))
    worker = make_worker(audit_share=1.0, upkeep_share=1000.0)
    show(worker, picture(1))
    asked_s = time.perf_counter()
    assert answer(worker).status == Status.OK
    assert counted.wait(PATIENCE_S) and time.perf_counter() - asked_s > QUIET_S
    show(worker, picture(2, stamp_s=1))
    assert answer(worker).status == Status.OK
    audited = worker.stats().sessions['camera'].audits
    assert (audited.exact_answers, audited.exact_drifted) == (1, 0)


def test_questions_go_before_the_shorter_history(make_worker, brake):
    worker = make_worker(history_frames=2, keyframe_interval_s=0.0, upkeep_share=1000.0)
    for seed in range(3):
        show(worker, picture(seed, stamp_s=seed))
        answer(worker, now_ns=seed * SECOND_NS)
    show(worker, picture(3, stamp_s=3))
    held = hold_a_question(worker, brake, now_ns=3 * SECOND_NS)
    known = len(worker.refreshes)
    waiting = [worker.ask('', QUESTION, 3 * SECOND_NS) for _ in range(3)]
    done_at = []
    waiting[-1].add_done_callback(lambda done: done_at.append(len(worker.refreshes)))
    brake.go_on.set()
    assert {future.result(PATIENCE_S).level for future in (held, *waiting)} <= {Level.FRAME, Level.REUSE}
    assert all(refresh.reason != 'history rollover' for _, refresh in worker.refreshes[known : done_at[0]])


def test_live_parameters_change_and_others_are_refused(worker):
    config = worker._config
    worker.configure(config.with_values(max_tokens=3))
    assert answer(worker, Question(QUESTION.text)).tokens_generated == 3
    with pytest.raises(ConfigError, match='image_transport cannot change'):
        worker.configure(config.with_values(image_transport='compressed'))


def test_stopping_answers_every_open_question(worker, brake, monkeypatch):
    futures = [hold_a_question(worker, brake), worker.ask('', QUESTION, 0)]
    close = worker._inbox.close
    monkeypatch.setattr(worker._inbox, 'close', lambda: (close(), brake.go_on.set()))
    worker.stop()
    assert {future.result(PATIENCE_S).status for future in futures} == {Status.CANCELLED}
    assert answer(worker).status == Status.CANCELLED


def test_a_stop_ends_both_threads_and_may_be_repeated(make_worker):
    worker = make_worker()
    show(worker, picture(1))
    for _ in range(2):
        worker.stop()
        assert not worker._thread.is_alive() and not worker._looks._thread.is_alive()
    worker.observe(picture(2, stamp_s=1))  # nobody looks at it, and nobody fails


def test_a_stop_waits_for_the_look_that_is_going_on(make_worker):
    worker = make_worker()
    show(worker, picture(1))
    worker.hold_looks()
    worker.observe(picture(2, stamp_s=1))
    assert worker.look_held.wait(PATIENCE_S)
    told = []

    def meanwhile():
        told.append(worker._looks._thread.is_alive())
        worker.looks_go_on.set()

    worker.stop(meanwhile)
    assert told and told[0] and not worker._looks._thread.is_alive()


def test_a_listener_that_fails_stops_nothing(model_dir):
    def on_refresh(frame, refresh):
        raise ValueError('nobody listens')

    worker = ModelWorker(Config(model=str(model_dir)), on_refresh)
    worker.start()
    worker.observe(picture(1))
    assert answer(worker).status == Status.OK
    worker.stop()


@pytest.mark.parametrize(
    'values, error', [({'model': '/no/such'}, ModelError), ({'system_prompt': '<|im_end|>'}, ConfigError)]
)
def test_what_cannot_start_raises_in_the_caller(model_dir, values, error):
    worker = ModelWorker(Config(**{'model': str(model_dir)} | values))
    with pytest.raises(error):
        worker.start()
    assert answer(worker).status == Status.CANCELLED
    worker.stop()


def test_a_model_that_loads_but_cannot_run_is_found_at_the_start(model_dir, brake):
    brake.failing = True
    with pytest.raises(ModelError, match='the device is gone'):
        ModelWorker(Config(model=str(model_dir))).start()


def test_the_process_ends_well_after_the_worker_has_stopped(model_dir):
    code = (
        'import sys; from vlm_reuse_node.config import Config\n'
        'from vlm_reuse_node.serving.worker import ModelWorker\n'
        'worker = ModelWorker(Config(model=sys.argv[1])); worker.start(); worker.stop()'
    )
    for _ in range(3):  # MLX aborts now and then when a thread that used it ends without giving back its streams
        subprocess.run([sys.executable, '-c', code, str(model_dir)], check=True, timeout=PATIENCE_S)


def test_a_fault_of_the_program_costs_the_states_and_no_answer(worker, monkeypatch):
    from vlm_reuse_node.serving import model_loop

    before = worker.ask('', QUESTION, 0).result(PATIENCE_S)
    monkeypatch.setattr(model_loop.SceneSession, 'ask_together', lambda *args, **kwargs: 1 / 0)
    failed = worker.ask('', QUESTION, 0).result(PATIENCE_S)
    assert failed.status is Status.MODEL_ERROR and 'division' in failed.message
    monkeypatch.undo()
    assert worker.ask('', QUESTION, 0).result(PATIENCE_S).token_ids == before.token_ids

    monkeypatch.setattr(model_loop.SceneSession, 'reset', lambda *args: 1 / 0)
    worker.reset()
    assert worker.ask('', QUESTION, 0).result(PATIENCE_S).status is Status.NO_IMAGE  # it was behind the reset
    assert 'Internal error' in worker.stats().last_error
    monkeypatch.undo()
    show(worker, picture(1))
    assert worker.ask('', QUESTION, 0).result(PATIENCE_S).token_ids == before.token_ids


def test_one_questions_wrong_timeout_is_nobody_elses_trouble(worker, brake):
    brake.hold()
    running = worker.ask('', QUESTION, 0)
    assert brake.held.wait(PATIENCE_S)
    wrong = worker.ask('', replace(QUESTION, timeout_s='1'), 0)
    brake.go_on.set()
    assert running.result(PATIENCE_S).status is Status.OK
    assert wrong.result(PATIENCE_S).status in (Status.INVALID_REQUEST, Status.MODEL_ERROR)


def test_a_camera_that_leaves_with_work_left_is_no_fault(make_worker, monkeypatch):
    from vlm_reuse_node.serving import model_loop

    worker = make_worker(cameras=('a', 'b'))
    show(worker, picture(1, camera='a'), picture(1, camera='b'))
    work = lambda session, check: 0.0 if session.camera == 'a' else None  # noqa: E731
    monkeypatch.setattr(model_loop.SceneSession, 'work', work)
    assert worker.ask('b', QUESTION, 0).result(PATIENCE_S).status is Status.OK  # from then on there is work
    worker.configure(worker._config.with_values(cameras=('b',)))
    wait_for(lambda: worker._loop.session('a') is None, 'the end of its session')
    assert worker.ask('b', QUESTION, 0).result(PATIENCE_S).status is Status.OK
    assert worker.stats().last_error == ''


def test_a_camera_that_leaves_and_comes_back_at_once_starts_without_credit(make_worker, brake):
    worker = make_worker(cameras=('front', 'rear'), max_age_s=3600.0)
    show(worker, picture(1, camera='rear'))
    for _ in range(3):
        answer(worker, camera='rear')
    assert answer(worker, camera='front').status is Status.NO_IMAGE  # the counts are told by then
    assert worker.stats().sessions['rear'].totals.cold_ms > 0
    show(worker, picture(1, camera='front'))
    held = hold_a_question(worker, brake)
    both = worker._config
    worker.configure(both.with_values(cameras=('front',)))
    worker.configure(both)
    brake.go_on.set()
    held.result(PATIENCE_S)
    assert answer(worker, camera='rear').status is Status.NO_IMAGE
    assert answer(worker, camera='front').status is Status.OK
    assert worker.stats().sessions['rear'].totals.cold_ms == 0
