"""Records and messages say the same."""

import numpy as np
import pytest

pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
from vlm_reuse_interfaces.msg import Answer as AnswerMessage
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.ros.messages import answer_message, budget_message, question_of
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question


@pytest.mark.parametrize('status', list(Status))
def test_every_status_has_its_constant(status):
    assert answer_message(Answer(status)).status == getattr(AnswerMessage, status.name)


def test_an_answer_keeps_every_field():
    answer = Answer(
        Status.OK,
        'a message',
        'red',
        1,
        (0.25, 0.75),
        'front',
        5_000_000_006,
        'lens',
        4_000_000_003,
        0.5,
        'tiny',
        Level.FRAME,
        False,
        10,
        20,
        3,
        (7, 8),
        1.0,
        2.0,
        3.0,
        4.0,
        0.75,
        True,
    )
    message = answer_message(answer)
    same = (
        'message',
        'text',
        'choice_index',
        'camera',
        'image_age_s',
        'model',
        'level',
        'exact',
        'tokens_reused',
        'tokens_prefilled',
        'tokens_generated',
        'queue_ms',
        'refresh_ms',
        'prefill_ms',
        'decode_ms',
        'total_ms',
        'confidence',
        'escalated',
    )
    assert {name: getattr(message, name) for name in same} == {name: getattr(answer, name) for name in same}
    assert list(message.choice_scores) == [0.25, 0.75] and list(message.token_ids) == [7, 8]
    assert (message.image_header.stamp.sec, message.image_header.stamp.nanosec) == (5, 6)
    assert (message.cached_stamp.sec, message.cached_stamp.nanosec) == (4, 3)
    assert message.image_header.frame_id == 'lens'


def test_a_refresh_keeps_its_counts_and_times():
    refreshed, deferred = np.array([[1, 1, 0, 0]], bool), np.array([[0, 0, 1, 0]], bool)
    refresh = Refresh(
        'front',
        5_000_000_006,
        'lens',
        Level.FRAME,
        'why',
        refreshed,
        deferred,
        0.5,
        9.0,
        1.0,
        2.0,
        4.0,
        changed=np.array([[0, 1, 0, 0]], bool),
    )
    message = budget_message(refresh, 30, 4, 5)
    assert (message.visual_tokens_total, message.visual_tokens_refreshed, message.visual_tokens_deferred) == (4, 2, 1)
    assert message.visual_tokens_changed == 1
    assert (message.frames_seen, message.frames_dropped, message.frames_refused) == (30, 4, 5)
    assert (message.change_ms, message.vision_ms, message.prefill_ms, message.spent_ms) == (1.0, 2.0, 4.0, 7.0)
    assert message.budget_ms == 9.0
    assert (message.camera, message.level, message.reason, message.oldest_cell_age_s) == ('front', 'frame', 'why', 0.5)
    assert (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) == (5, 6, 'lens')


def test_a_request_becomes_a_question():
    request = AskScene.Request(
        question='what ?',
        choices=['a', 'b'],
        json_schema='{}',
        max_tokens=3,
        max_age_s=1.5,
        timeout_s=2.5,
        force_refresh=True,
    )
    assert question_of(request) == Question('what ?', ('a', 'b'), '{}', 3, 1.5, 2.5, True)
