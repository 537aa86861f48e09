"""What waits for the model: turns, bounds, and that nothing is passed over for ever."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.serving.inbox import MOST_SKIPPED, Inbox, Reset
from vlm_reuse_node.serving.queued_question import QueuedQuestion
from vlm_reuse_node.session.question import Question

PICTURE = np.zeros((1, 1, 3), np.uint8)


def ask(camera, text='what ?'):
    return QueuedQuestion(camera, Question(text), 0)


def frame(camera, stamp_ns=0):
    return Frame(PICTURE, stamp_ns, camera=camera)


def test_questions_go_before_standing_ones_before_frames_and_resets_before_all():
    inbox, asked, standing = Inbox(), ask('a'), ask('a')
    inbox.put_frame(frame('a'))
    inbox.put_standing(standing)
    inbox.put_question(asked, 1)
    inbox.put_reset('b')
    kinds = [inbox.next() for _ in range(4)]
    assert kinds[:3] == [Reset('b'), asked, standing] and isinstance(kinds[3], Frame)


def test_cameras_take_turns_and_each_keeps_its_order():
    inbox = Inbox()
    for camera, text in (('a', '1'), ('a', '2'), ('a', '3'), ('b', '1'), ('b', '2')):
        assert inbox.put_question(ask(camera, text), 9)
    taken = [inbox.next() for _ in range(5)]
    assert [(each.camera, each.question.text) for each in taken] == [
        ('a', '1'),
        ('b', '1'),
        ('a', '2'),
        ('b', '2'),
        ('a', '3'),
    ]


def test_frames_of_cameras_take_turns_however_fast_one_is():
    inbox = Inbox()
    inbox.put_frame(frame('slow'))
    taken = []
    for stamp_ns in range(6):
        inbox.put_frame(frame('fast', stamp_ns))
        inbox.put_frame(frame('slow', stamp_ns))
        taken.append(inbox.next().camera)
    assert taken == ['slow', 'fast'] * 3


def test_a_full_queue_of_one_camera_is_not_full_for_another():
    inbox = Inbox()
    assert inbox.put_question(ask('a'), 1) and not inbox.put_question(ask('a'), 1) and inbox.put_question(ask('b'), 1)
    assert inbox.waiting() == {'a': 1, 'b': 1} and len(inbox) == 2


@settings(max_examples=60)
@given(
    strategies.lists(
        strategies.sampled_from(['ask a', 'ask b', 'stand a', 'stand b', 'frame a', 'frame b']), min_size=1, max_size=6
    )
)
def test_nothing_is_passed_over_for_ever(arriving):
    """Whatever keeps arriving: a question, a standing question and a frame that wait are each served soon."""
    inbox = Inbox()
    waiting = [ask('c'), ask('c'), frame('c')]
    inbox.put_question(waiting[0], 99)
    inbox.put_standing(waiting[1])
    inbox.put_frame(waiting[2])
    put = {
        'ask': lambda camera: inbox.put_question(ask(camera), 99),
        'stand': lambda camera: inbox.put_standing(ask(camera)),
        'frame': lambda camera: inbox.put_frame(frame(camera)),
    }
    served = []
    for kind, camera in itertools.islice(map(str.split, itertools.cycle(arriving)), 10 * MOST_SKIPPED):
        put[kind](camera)
        served.append(inbox.next())
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
        assert not inbox.put_question(ask('a'), 9) and not inbox.put_standing(ask('a')) and inbox.next() is None
    assert set(inbox.take_leaving(60.0)) == (set(asks) if closed else {asks[0]})
    assert len(inbox) == (0 if closed else 2)
