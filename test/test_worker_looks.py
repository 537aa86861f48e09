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

"""Pictures that come while the model is busy: looked at, counted, forgotten, asked about. Every wait is on an event."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from patience import PATIENCE_S, wait_for
from tiny_model import SECOND_NS, picture
from working import QUESTION, answer, hold_a_question, levels, show

from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.serving.watch import Region, Watch
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question

CHOICE = Question('what is the color ?', ('red', 'green', 'blue'))


@pytest.fixture
def worker(make_worker):
    """A worker that was asked about picture 1, and does no upkeep."""
    worker = make_worker(upkeep_share=0.0)
    show(worker, picture(1))
    answer(worker)
    return worker


def touched(frame, row, column, stamp_s):
    """The frame with one of its 3 x 4 cells changed."""
    rgb = frame.rgb.copy()
    height, width = rgb.shape[0] // 3, rgb.shape[1] // 4
    rgb[row * height : (row + 1) * height, column * width : (column + 1) * width] ^= 255
    return replace(frame, rgb=rgb, stamp_ns=int(stamp_s * SECOND_NS))


def work_done(worker):
    return worker._loop._vlm.meter.done


def test_pictures_are_looked_at_while_the_model_is_busy_with_a_question(worker, brake):
    held, spent = hold_a_question(worker, brake), work_done(worker)
    frames = [touched(picture(1), 1, 2, stamp_s=1), touched(picture(1), 1, 2, stamp_s=2)]
    show(worker, *frames)
    assert not held.done() and work_done(worker) == spent
    (_, first), (_, second) = worker.refreshes[-2:]
    assert first.level == second.level == Level.REUSE and not first.refreshed.any()
    assert first.stale[1, 2] and 0 < first.visual_tokens_stale < first.visual_tokens_total
    assert (first.stamp_ns, second.stamp_ns) == (SECOND_NS, 2 * SECOND_NS) and 0 < first.lag_s < second.lag_s
    brake.go_on.set()
    assert held.result(PATIENCE_S).stamp_ns == 0
    assert answer(worker, now_ns=2 * SECOND_NS).stamp_ns == 2 * SECOND_NS


def test_the_frame_whose_look_has_begun_is_waited_for_by_a_question(worker):
    """A question that comes after a picture is never answered from an older one."""
    worker.hold_looks()
    worker.observe(picture(2, stamp_s=1))
    assert worker.look_held.wait(PATIENCE_S)
    worker.observe(picture(3, stamp_s=2))
    future = worker.ask('', QUESTION, 2 * SECOND_NS)
    assert not future.done()
    worker.looks_go_on.set()
    assert future.result(PATIENCE_S).stamp_ns == 2 * SECOND_NS


def test_the_first_picture_is_never_missed_by_the_question_behind_it(make_worker):
    """It needs the model, so it changes lanes while the question comes."""
    worker = make_worker()
    for _ in range(50):
        worker.observe(picture(1))
        assert answer(worker).status == Status.OK
        worker.reset()
        assert answer(worker).status == Status.NO_IMAGE


def test_every_picture_is_looked_at_or_dropped_once(worker, brake):
    """While looks are held, and while the model that a picture of another size needs is busy."""
    show_before, frames = len(worker.refreshes), [picture(seed, stamp_s=seed) for seed in range(2, 10)]
    worker.hold_looks()
    worker.observe(frames[0])
    assert worker.look_held.wait(PATIENCE_S)
    for frame in frames[1:4]:
        worker.observe(frame)
    assert [id(frame) for frame in worker.dropped] == [id(frame) for frame in frames[1:3]]
    worker.looks_go_on.set()
    show(worker, frames[4])

    held = hold_a_question(worker, brake)
    sizes = [picture(seed, stamp_s=seed, size=(240, 320)) for seed in range(10, 20)]
    for frame in sizes:
        worker.observe(frame)  # none of them can be looked at without the model
    brake.go_on.set()
    held.result(PATIENCE_S)
    show(worker, picture(20, stamp_s=20, size=(240, 320)))
    handed = [*frames[:5], *sizes, worker.refreshes[-1][0]]
    seen = [frame for frame, refresh in worker.refreshes[show_before:] if refresh.level == Level.REUSE]
    assert sorted(map(id, [*seen, *worker.dropped])) == sorted(map(id, handed))


def test_a_picture_that_is_overtaken_on_its_way_to_the_model_is_dropped_once(make_worker, monkeypatch):
    worker = make_worker()
    session, held, go_on = worker._loop.session, threading.Event(), threading.Event()

    def session_later(camera):
        held.set()
        assert go_on.wait(PATIENCE_S)
        return session(camera)

    monkeypatch.setattr(worker._loop, 'session', session_later)
    frames = [picture(seed, stamp_s=seed) for seed in (1, 2)]
    worker.observe(frames[0])
    assert held.wait(PATIENCE_S)  # it needs the model, because it is the first
    worker.observe(frames[1])
    assert not worker.dropped
    go_on.set()
    given = answer(worker, now_ns=2 * SECOND_NS)
    assert given.status == Status.OK and given.stamp_ns == 2 * SECOND_NS
    assert [id(frame) for frame in worker.dropped] == [id(frames[0])]


def test_a_look_wakes_the_model_for_upkeep(make_worker):
    """Nobody asks any more, and what changed is computed from credit."""
    worker = make_worker(upkeep_share=1000.0, audit_share=0.0)
    show(worker, picture(1))
    answer(worker)
    show(worker, picture(2, stamp_s=1))
    while levels(worker)[-1] == Level.REUSE:
        assert worker.counted.acquire(timeout=PATIENCE_S)
    assert levels(worker) == [Level.REUSE, Level.FULL, Level.REUSE, Level.FRAME]


def test_a_picture_that_is_older_than_one_looked_at_is_dropped(worker):
    show(worker, picture(2, stamp_s=2.0))
    late = picture(3, stamp_s=1.9)
    worker.observe(late)
    show(worker, picture(4, stamp_s=2.1))
    assert [id(frame) for frame in worker.dropped] == [id(late)]
    assert answer(worker, now_ns=3 * SECOND_NS).level == Level.FRAME  # jitter is no restart


@pytest.mark.parametrize('later', [False, True])
def test_a_reset_during_a_look_forgets_that_picture_and_not_the_later_one(worker, later):
    worker.hold_looks()
    worker.observe(picture(2, stamp_s=1))
    assert worker.look_held.wait(PATIENCE_S)
    worker.reset()
    if later:
        worker.observe(picture(3, stamp_s=2))
    future = worker.ask('', QUESTION, 2 * SECOND_NS)
    worker.looks_go_on.set()
    given = future.result(PATIENCE_S)
    if later:
        show(worker, picture(4, stamp_s=3))  # the later one is looked at, maybe only behind the question
        given = answer(worker, now_ns=3 * SECOND_NS)
        assert (given.status, given.level, given.stamp_ns) == (Status.OK, Level.FULL, 3 * SECOND_NS) or (
            given.level == Level.FRAME
        )
    else:
        assert given.status == Status.NO_IMAGE
    assert not worker.dropped and worker.stats().last_error == ''


def test_resets_among_pictures_and_questions_do_no_harm(make_worker):
    worker = make_worker(cameras=('a', 'b'), upkeep_share=1000.0)
    futures = []
    for number in range(60):
        for camera in 'ab':
            size = (480, 640) if number % 7 else (240, 320)
            worker.observe(picture(number, stamp_s=number / 10, size=size, camera=camera))
        if number % 3 == 0:
            worker.reset('ab'[number % 2])
        futures.append(worker.ask('ab'[number % 4 // 2], QUESTION, int(number / 10 * SECOND_NS)))
        if number % 5 == 0:
            futures[-1].result(PATIENCE_S)
    assert {future.result(PATIENCE_S).status for future in futures} <= {Status.OK, Status.NO_IMAGE, Status.BUSY}
    for camera in 'ab':
        show(worker, picture(99, stamp_s=9, camera=camera))
        warm, cold = (
            answer(worker, now_ns=9 * SECOND_NS, ask=ask, camera=camera) for ask in (worker.ask, worker.ask_cold)
        )
        assert warm.status == Status.OK and warm.stamp_ns == 9 * SECOND_NS and warm.token_ids == cold.token_ids
    assert worker.stats().last_error == ''


def test_a_camera_that_leaves_and_returns_begins_anew_and_its_standing_questions_go_on(make_worker):
    worker = make_worker(cameras=('a', 'b'))
    show(worker, picture(1, camera='a'), picture(1, camera='b'))
    watch, first = worker.watch(Watch(0, 'a', CHOICE), 0)
    assert first.result(PATIENCE_S).status == Status.OK
    config = worker._config
    worker.configure(config.with_values(cameras=('b',)))
    assert answer(worker, camera='a').status == Status.INVALID_REQUEST
    assert answer(worker, camera='b').status == Status.OK
    worker.configure(config)
    assert answer(worker, camera='a').status == Status.NO_IMAGE
    asked = worker.stats().answers['OK']
    show(worker, picture(2, stamp_s=1, camera='a'))
    given = answer(worker, now_ns=SECOND_NS, camera='a')
    assert given.status == Status.OK and given.stamp_ns == SECOND_NS
    answer(worker, now_ns=SECOND_NS, camera='b')  # standing questions go behind planners'
    while worker._watches._waiting:
        answer(worker, now_ns=SECOND_NS, camera='b')
    assert worker.stats().answers['OK'] >= asked + 3  # both cameras' and the standing question's
    assert [each.watch_id for each in worker.watches()] == [watch.watch_id]


def test_a_camera_nobody_asks_about_causes_no_step_of_the_model(make_worker, monkeypatch):
    from vlm_reuse_node.serving.model_loop import SceneSession

    worker = make_worker(cameras=('asked', 'quiet'), upkeep_share=1000.0, audit_share=1.0, history_frames=2)
    show(worker, picture(1, camera='asked'), picture(1, camera='quiet'))
    for _ in range(3):
        answer(worker, camera='asked')
    wait_for(
        lambda: worker._loop.session('asked').status.audits.exact_answers >= 3,
        'the third audit',
        worker._inbox.wake,
    )
    spent, turns = work_done(worker), []
    work = SceneSession.work
    monkeypatch.setattr(
        SceneSession, 'work', lambda session, check: turns.append(session.camera) or work(session, check)
    )
    for number in range(2, 12):
        show(worker, picture(number, stamp_s=number, camera='quiet'))
    unknown = answer(worker, Question(''), camera='asked')  # behind it, upkeep has had its turn
    assert unknown.status == Status.INVALID_REQUEST
    wait_for(lambda: turns.count('quiet') >= 2, "the quiet camera's second turn", worker._inbox.wake)
    assert work_done(worker) == spent
    quiet = worker.stats().sessions['quiet']
    assert (quiet.frames, quiet.totals.work_ms, quiet.totals.cold_ms) == (0, 0.0, 0.0)


def test_a_standing_question_is_asked_for_stale_cells_in_its_region_and_not_for_others(worker):
    height, width = picture(1).size
    corner = Region(0, 0, width // 4, height // 3)
    _, first = worker.watch(Watch(0, '', CHOICE, region=corner), 0)
    assert first.result(PATIENCE_S).status == Status.OK
    asked = worker.stats().answers['OK']
    frame = touched(picture(1), 2, 3, stamp_s=1)
    show(worker, frame)
    assert worker.refreshes[-1][1].visual_tokens_stale and not worker._watches._waiting
    assert worker.stats().answers['OK'] == asked
    show(worker, touched(frame, 0, 0, stamp_s=2))
    while not any(
        refresh.stamp_ns == 2 * SECOND_NS and refresh.level == Level.FRAME for _, refresh in worker.refreshes
    ):
        assert worker.counted.acquire(timeout=PATIENCE_S)  # the question itself pays for the picture


def test_a_change_during_the_answer_of_a_standing_question_needs_no_other_picture(worker, brake):
    brake.hold()
    _, first = worker.watch(Watch(0, '', CHOICE), 0)
    assert brake.held.wait(PATIENCE_S)
    show(worker, touched(picture(1), 0, 0, stamp_s=1))
    brake.go_on.set()
    assert first.result(PATIENCE_S).stamp_ns == 0
    while levels(worker)[-1] == Level.REUSE:
        assert worker.counted.acquire(timeout=PATIENCE_S)
    assert worker.refreshes[-1][1].stamp_ns == SECOND_NS


@pytest.mark.parametrize('own_s, nodes_s', [(1.5, 0.0), (0.0, 1.5)])
def test_a_standing_question_that_allows_a_lag_pays_for_no_picture_before_it_is_over(worker, own_s, nodes_s):
    worker.configure(worker._config.with_values(max_lag_s=nodes_s))
    _, first = worker.watch(Watch(0, '', replace(CHOICE, max_lag_s=own_s)), 0)
    assert first.result(PATIENCE_S).status == Status.OK
    known, spent = len(worker.refreshes), work_done(worker)
    for stamp_s in (0.5, 1.0, 1.5):
        show(worker, touched(picture(1), 0, 0, stamp_s=stamp_s))
        assert not worker._watches._waiting
    assert work_done(worker) == spent and set(levels(worker)[known:]) == {Level.REUSE}
    show(worker, touched(picture(1), 0, 0, stamp_s=2.0))
    while levels(worker)[-1] == Level.REUSE:
        assert worker.counted.acquire(timeout=PATIENCE_S)
    assert levels(worker)[known:] == [Level.REUSE] * 4 + [Level.FRAME]


def test_a_picture_that_cannot_be_compared_is_told_and_the_next_one_is_not(worker, monkeypatch):
    session = worker._loop.session('camera')
    monkeypatch.setattr(session, 'look', lambda frame: 1 / 0)
    worker.observe(picture(2, stamp_s=1))
    given = answer(worker)
    assert given.status == Status.OK and given.stamp_ns == 0
    monkeypatch.undo()
    show(worker, picture(3, stamp_s=2))
    assert answer(worker, now_ns=2 * SECOND_NS).stamp_ns == 2 * SECOND_NS and worker.stats().last_error == ''


def test_new_parameters_hold_from_the_next_look_on(worker):
    frame = picture(1, stamp_s=1)
    rgb = frame.rgb.astype(int)
    brighter = Frame(np.clip(rgb + np.where(rgb < 128, 60, -60), 0, 255).astype(np.uint8), SECOND_NS, camera='camera')
    worker.configure(worker._config.with_values(change_threshold=200))
    show(worker, brighter)
    assert worker.refreshes[-1][1].visual_tokens_stale == 0
    worker.configure(worker._config.with_values(change_threshold=10))
    show(worker, replace(brighter, stamp_ns=2 * SECOND_NS))
    assert worker.refreshes[-1][1].visual_tokens_stale > 0
