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

"""What waits for the model: turns, bounds, and that nothing is passed over for ever."""

import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.serving import inbox as inboxes
from vlm_reuse_node.serving import queued_question
from vlm_reuse_node.serving.inbox import MOST_SKIPPED, Inbox, Reset
from vlm_reuse_node.serving.queued_question import QueuedQuestion
from vlm_reuse_node.session.question import Question

PICTURE = np.zeros((1, 1, 3), np.uint8)
LONG_S = 20.0


def ask(camera, text='what ?'):
    return QueuedQuestion(camera, Question(text), 0)


def frame(camera, stamp_ns=0):
    return Frame(PICTURE, stamp_ns, camera=camera)


def test_questions_go_before_standing_ones_before_frames_and_resets_before_all():
    inbox, asked, standing = Inbox(), ask('a'), ask('a')
    inbox.put_first_frame(frame('a'))
    inbox.put_standing(standing)
    inbox.put_question(asked, 1)
    inbox.put_reset('b')
    kinds = [inbox.next(0) for _ in range(4)]
    assert kinds[:3] == [Reset('b'), asked, standing] and isinstance(kinds[3], Frame)


def test_cameras_take_turns_and_each_keeps_its_order():
    inbox = Inbox()
    for camera, text in (('a', '1'), ('a', '2'), ('a', '3'), ('b', '1'), ('b', '2')):
        assert inbox.put_question(ask(camera, text), 9)
    taken = [inbox.next(0) for _ in range(5)]
    assert [(each.camera, each.question.text) for each in taken] == [
        ('a', '1'),
        ('b', '1'),
        ('a', '2'),
        ('b', '2'),
        ('a', '3'),
    ]


def test_frames_of_cameras_take_turns_however_fast_one_is():
    for put, take in (('put_frame', Inbox.next_frame), ('put_first_frame', lambda inbox: inbox.next(0))):
        inbox, taken = Inbox(), []
        getattr(inbox, put)(frame('slow'))
        for stamp_ns in range(6):
            getattr(inbox, put)(frame('fast', stamp_ns))
            getattr(inbox, put)(frame('slow', stamp_ns))
            taken.append(take(inbox).camera)
        assert taken == ['slow', 'fast'] * 3


def test_a_full_queue_of_one_camera_is_not_full_for_another():
    inbox = Inbox()
    assert [inbox.put_question(ask(camera), 1) for camera in ('a', 'a', 'b')] == [True, False, True]
    assert [inbox.put_standing(ask('a')) for _ in range(2)] == [True, True]  # however many
    assert inbox.waiting() == {'a': 1, 'b': 1} and len(inbox) == 4


@settings(max_examples=60)
@given(
    strategies.lists(
        strategies.sampled_from(['ask a', 'ask b', 'stand a', 'stand b', 'frame a', 'frame b']), min_size=1, max_size=6
    )
)
def test_nothing_is_passed_over_for_ever(arriving):
    """Whatever keeps arriving: a question, a standing question and a first frame that wait are each served soon."""
    inbox = Inbox()
    waiting = [ask('c'), ask('c'), frame('c')]
    inbox.put_question(waiting[0], 99)
    inbox.put_standing(waiting[1])
    inbox.put_first_frame(waiting[2])
    put = {
        'ask': lambda camera: inbox.put_question(ask(camera), 99),
        'stand': lambda camera: inbox.put_standing(ask(camera)),
        'frame': lambda camera: inbox.put_first_frame(frame(camera)),
    }
    served = []
    for kind, camera in itertools.islice(map(str.split, itertools.cycle(arriving)), 10 * MOST_SKIPPED):
        put[kind](camera)
        served.append(inbox.next(0))
    assert all(any(each is one for one in served) for each in waiting)


@pytest.mark.parametrize('closed', [False, True])
def test_who_was_cancelled_leaves_and_all_do_when_closed(closed):
    inbox, asks = Inbox(), [ask('a'), ask('b'), ask('a')]
    for each in asks[:2]:
        inbox.put_question(each, 9)
    inbox.put_standing(asks[2])
    asks[0].future.cancel()
    if closed:
        inbox.close()
        assert [inbox.put_question(ask('a'), 9), inbox.put_standing(ask('a'))] == [False, False]
        assert inbox.next(0) is None
    assert set(inbox.take_leaving(60.0)) == (set(asks) if closed else {asks[0]})
    assert len(inbox) == (0 if closed else 2)


def test_a_question_is_a_planners_and_warm_unless_said_otherwise():
    assert not ask('a').cold and not ask('a').is_standing


@pytest.mark.parametrize('timeout_s, limit_s', [(5.0, 5.0), (0.5, 0.5), (0.0, 60.0), (90.0, 90.0)])
def test_a_question_is_late_once_its_own_time_or_the_default_is_over(monkeypatch, timeout_s, limit_s):
    queued, clock = QueuedQuestion('a', Question('what ?', timeout_s=timeout_s), 0, asked_s=100.0), [100.0]
    monkeypatch.setattr(queued_question, 'time', SimpleNamespace(perf_counter=lambda: clock[0]))
    for waited_s in (0.0, limit_s - 0.25, limit_s, limit_s + 1):
        clock[0] = 100.0 + waited_s
        assert queued.is_late(60.0) == (waited_s >= limit_s)


@pytest.mark.parametrize('timeout_s', [-1.0, float('nan'), 'soon', None, 0.0])
def test_a_timeout_that_makes_no_sense_is_left_to_who_checks_questions(timeout_s):
    assert not QueuedQuestion('a', Question('what ?', timeout_s=timeout_s), 0, asked_s=-9e9).is_late(0.0)


@pytest.mark.parametrize('is_cancelled', [lambda queued: queued.future.cancel(), lambda queued: queued.cancel.set()])
def test_who_cancels_by_future_or_event_leaves(is_cancelled):
    inbox, queued = Inbox(), QueuedQuestion('a', Question('what ?'), 0, cancel=threading.Event())
    inbox.put_question(queued, 1)
    assert inbox.take_leaving(60.0) == []
    is_cancelled(queued)
    assert inbox.take_leaving(60.0) == [queued] and len(inbox) == 0


def test_who_is_late_leaves_and_the_others_keep_their_order(monkeypatch):
    monkeypatch.setattr(queued_question, 'time', SimpleNamespace(perf_counter=lambda: 100.0))
    inbox = Inbox()
    early, late, patient, standing = (
        QueuedQuestion('a', Question(text, timeout_s=timeout_s), 0, asked_s=asked_s)
        for text, timeout_s, asked_s in (('1', 0, 80.0), ('2', 0, 60.0), ('3', 70, 50.0), ('4', 0, 50.0))
    )
    for queued in (early, late, patient):
        inbox.put_question(queued, 9)
    inbox.put_standing(standing)
    assert inbox.take_leaving(30.0) == [late, standing]
    assert [inbox.next(0), inbox.next(0)] == [early, patient] and inbox.next(0) is None


def test_a_camera_without_questions_has_no_turn_and_no_count():
    inbox, queued = Inbox(), ask('a')
    inbox.put_question(queued, 1)
    inbox.put_question(ask('b'), 1)
    queued.future.cancel()
    inbox.take_leaving(60.0)
    assert inbox.waiting() == {'b': 1} and inbox.next(0).camera == 'b' and inbox.waiting() == {}


def test_only_the_newest_frame_of_a_camera_waits_and_the_putter_gets_the_older_one():
    inbox, frames = Inbox(), [frame('a', stamp_ns) for stamp_ns in range(3)]
    assert [inbox.put_frame(each) for each in frames] == [None, *frames[:2]]
    assert inbox.take_frame('a') is frames[-1] and inbox.take_frame('a') is None and inbox.next(0) is None


@settings(max_examples=200)
@given(strategies.lists(strategies.sampled_from(['put a', 'put b', 'look', 'look first', 'model', 'ask a', 'reset a'])))
def test_every_frame_is_looked_at_replaced_forgotten_or_waits_and_only_one_of_them(steps):
    """Over both places where a frame may wait. A frame that was put before another is never looked at after it."""
    inbox, put, looked_at, replaced, forgotten, waiting = Inbox(), [], [], [], [], {}
    for number, step in enumerate(steps):
        verb, _, camera = step.partition(' ')
        if verb == 'put':
            put.append(frame(camera, number))
            if gone := inbox.put_frame(put[-1]):
                replaced.append(gone)
            waiting[camera] = put[-1]
        elif verb == 'look' and inbox._next_camera():
            taken = inbox.next_frame()
            if camera == 'first':
                assert inbox.put_first_frame(taken)
            else:
                looked_at.append(taken)
                waiting.pop(taken.camera)
            inbox._looked_at = None  # as the next `next_frame` says
        elif verb == 'model' and isinstance(item := inbox.next(0), Frame):
            looked_at.append(item)
            waiting.pop(item.camera)
        elif verb == 'ask' and (taken := inbox.take_frame('a')):
            looked_at.append(taken)
            waiting.pop('a')
        elif verb == 'reset':
            inbox.put_reset('a')
            if 'a' in waiting:
                forgotten.append(waiting.pop('a'))
        inbox.finish()
    left = [*inbox._frames.values(), *inbox._first_frames.values()]
    assert {id(each) for each in left} == {id(each) for each in waiting.values()}
    assert sorted(map(id, [*looked_at, *replaced, *forgotten, *left])) == sorted(map(id, put))
    for camera in 'ab':
        stamps = [each.stamp_ns for each in looked_at if each.camera == camera]
        assert stamps == sorted(stamps)


def test_a_first_frame_that_is_overtaken_on_its_way_is_given_up_once():
    inbox, older, newer = Inbox(), frame('a', 1), frame('a', 2)
    inbox.put_frame(older)
    assert inbox.next_frame() is older
    assert inbox.put_frame(newer) is None  # the older one does not wait: it may be looked at
    assert not inbox.put_first_frame(older)
    assert inbox.next_frame() is newer and inbox.put_first_frame(newer)
    assert inbox.put_frame(frame('a', 3)) is newer and inbox.next(0) is None


def test_a_reset_takes_the_waiting_frame_with_it():
    inbox = Inbox()
    for camera in 'ab':
        inbox.put_first_frame(frame(camera))
    inbox.put_frame(frame('a', 1))
    inbox.put_reset('a')
    inbox.put_reset('c')  # which has none
    assert [inbox.next(0), inbox.next(0)] == [Reset('a'), Reset('c')]
    assert inbox.next(0).camera == 'b' and inbox.next(0) is None and inbox.take_frame('a') is None


def test_a_frame_on_its_way_to_the_model_is_forgotten_by_a_reset():
    inbox = Inbox()
    inbox.put_frame(frame('a', 1))
    taken = inbox.next_frame()
    inbox.put_reset('a')
    assert inbox.put_first_frame(taken)  # nobody counts it as replaced
    inbox._looked_at = None
    assert inbox.next(0) == Reset('a') and inbox.next(0) is None


def test_a_frame_that_comes_after_a_reset_waits_for_it_and_other_cameras_do_not():
    inbox, after, other = Inbox(), frame('a', 2), frame('b')
    inbox.put_reset('a')
    inbox.put_frame(after)
    inbox.put_frame(other)
    assert inbox.take_frame('a') is None  # for a question that was asked before the reset
    assert inbox.next_frame() is other and inbox._next_camera() is None
    assert inbox.next(0) == Reset('a') and inbox._next_camera() is None
    inbox.finish()
    assert inbox.next_frame() is after


def test_a_question_waits_for_the_look_at_the_frame_before_it(monkeypatch):
    before, newer = frame('a', 1), frame('a', 2)

    def take(inbox):
        inbox.put_frame(before)
        assert inbox.next_frame() is before
        inbox.put_frame(frame('b'))
        inbox.put_frame(newer)
        return inbox.take_frame('a')

    assert woken(monkeypatch, take, end_of_look)[1] is newer


def test_a_reset_waits_for_the_look_at_the_frame_before_it(monkeypatch):
    def take(inbox):
        inbox.put_frame(frame('a', 1))
        inbox.next_frame()
        inbox.put_frame(frame('b'))
        inbox.put_reset('a')
        return inbox.next()

    assert woken(monkeypatch, take, end_of_look)[1] == Reset('a')


def end_of_look(inbox):
    """The looks ask for the next frame, which is of another camera."""
    assert inbox.next_frame().camera == 'b'


def test_a_lane_is_skipped_so_often_and_no_more():
    inbox, standing, picture = Inbox(), ask('a'), frame('a')
    inbox.put_standing(standing)
    inbox.put_first_frame(picture)
    served = []
    for _ in range(MOST_SKIPPED + 3):
        inbox.put_question(ask('a'), 99)
        served.append(inbox.next(0))
    assert all(each not in (standing, picture) for each in served[:MOST_SKIPPED])
    assert served[MOST_SKIPPED] is standing and served[MOST_SKIPPED + 1] is picture
    assert served[-1] not in (standing, picture)


def test_what_was_skipped_and_served_waits_as_long_the_next_time():
    """A lane's turns are counted anew when it was served, and while it is empty."""
    inbox, served = Inbox(), []
    for _ in range(3 * MOST_SKIPPED):
        inbox.put_question(ask('a'), 99)
        inbox.put_first_frame(frame('a'))
        served.append(isinstance(inbox.next(0), Frame))
    turns = [number for number, is_frame in enumerate(served) if is_frame]
    assert np.diff([-1, *turns]).tolist() == [MOST_SKIPPED + 1] * len(turns) and len(turns) > 1
    assert isinstance(inbox.next(0), QueuedQuestion)


@pytest.mark.parametrize(
    'put, is_item',
    [
        (lambda inbox: inbox.put_first_frame(frame('a')), True),
        (lambda inbox: inbox.put_question(ask('a'), 1), True),
        (lambda inbox: inbox.put_standing(ask('a')), True),
        (lambda inbox: inbox.put_reset('a'), True),
        (lambda inbox: inbox.wake(), False),
        (lambda inbox: inbox.close(), False),
    ],
)
def test_the_model_is_woken_by_whatever_comes(monkeypatch, put, is_item):
    assert (woken(monkeypatch, Inbox.next, put)[1] is not None) == is_item


@pytest.mark.parametrize('put', [lambda inbox: inbox.put_frame(frame('a')), lambda inbox: inbox.close()])
def test_the_looks_are_woken_by_a_frame_and_by_the_end(monkeypatch, put):
    inbox, taken = woken(monkeypatch, Inbox.next_frame, put)
    assert (taken is None) == (not inbox.is_open)


def test_a_wake_does_not_last():
    """The model's thread looks once for upkeep, and then waits again."""
    inbox, asked = Inbox(), ask('a')
    inbox.wake()
    inbox.put_question(asked, 1)
    assert inbox.next(0) is asked and not inbox._is_woken


def woken(monkeypatch, take, put):
    """An inbox where one thread takes, and has to wait until another puts; and what it took."""
    waits = threading.Event()

    class Condition(threading.Condition):
        def wait(self, timeout=None):
            waits.set()  # the lock is held: nothing can be put before the wait has begun
            return super().wait(timeout)

    monkeypatch.setattr(inboxes, 'threading', SimpleNamespace(Condition=Condition))
    inbox, taken = Inbox(), []
    thread = threading.Thread(target=lambda: taken.append(take(inbox)), daemon=True)
    thread.start()
    assert waits.wait(LONG_S)
    put(inbox)
    thread.join(LONG_S)
    assert not thread.is_alive()
    return inbox, taken[0]
