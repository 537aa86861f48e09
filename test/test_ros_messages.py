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

"""Records and messages say the same."""

import math

import numpy as np
import pytest

pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
from builtin_interfaces.msg import Duration
from sensor_msgs.msg import RegionOfInterest
from vlm_reuse_interfaces.msg import Answer as AnswerMessage
from vlm_reuse_interfaces.msg import RefreshBudget
from vlm_reuse_interfaces.srv import AddWatch, AskScene

from vlm_reuse_node.ros.messages import (
    answer_message,
    budget_message,
    duration_of,
    level_of,
    question_of,
    seconds_of,
    watch_answer_message,
    watch_message,
    watch_of,
)
from vlm_reuse_node.scene.refresh import Level, Refresh, Totals
from vlm_reuse_node.serving.watch import Watch
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question


@pytest.mark.parametrize('status', list(Status))
def test_every_status_has_its_constant(status):
    assert answer_message(Answer(status)).status == getattr(AnswerMessage, status.name)


@pytest.mark.parametrize('level', list(Level))
def test_every_level_has_its_constant_and_comes_back(level):
    message = answer_message(Answer(Status.OK, level=level))
    assert message.level == getattr(AnswerMessage, f'LEVEL_{level.name}') and level_of(message) is level


def test_without_an_answer_there_is_no_level():
    message = answer_message(Answer(Status.STALE))
    assert message.level == AnswerMessage().level == AnswerMessage.LEVEL_NONE and level_of(message) == ''


def test_a_duration_comes_back_to_the_nanosecond():
    for nanoseconds in (0, 1, 999_999_999, 1_000_000_000, 86_400_000_000_001, -1, -1_500_000_000):
        duration = duration_of(nanoseconds / 1e9)
        assert 1_000_000_000 * duration.sec + duration.nanosec == nanoseconds
        assert 0 <= duration.nanosec < 1_000_000_000 and seconds_of(duration) == nanoseconds / 1e9


@pytest.mark.parametrize('seconds', [2.0**31, 1e300, math.inf, math.nan])
def test_what_is_too_long_for_a_duration_is_the_longest(seconds):
    assert duration_of(seconds) == Duration(sec=2**31 - 1, nanosec=999_999_999)


@pytest.mark.parametrize('seconds', [-(2.0**31) - 1, -1e300, -math.inf])
def test_what_is_too_short_for_a_duration_is_the_shortest(seconds):
    assert duration_of(seconds) == Duration(sec=-(2**31))


def test_an_answer_of_no_known_age_is_a_message():
    assert answer_message(Answer(Status.OK, image_age_s=math.inf)).image_age.sec == 2**31 - 1


def test_a_new_answer_of_a_standing_question_has_the_header_of_its_picture():
    answer = Answer(Status.OK, text='yes', choice_index=0, stamp_ns=5_000_000_006, frame_id='lens')
    before = Answer(Status.OK, text='no', choice_index=1, stamp_ns=1, frame_id='old')
    message = watch_answer_message(Watch(7, 'front', Question('is it ?', ('yes', 'no')), answer=answer), before)
    assert message.header == message.watch.answer.header
    assert (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) == (5, 6, 'lens')
    assert (message.watch.watch_id, message.old_choice_index, message.old_text) == (7, 1, 'no')


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
        0.25,
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
        escalated=True,
        remembered=True,
    )
    message = answer_message(answer)
    same = (
        'message',
        'text',
        'choice_index',
        'camera',
        'model',
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
        'remembered',
    )
    assert {name: getattr(message, name) for name in same} == {name: getattr(answer, name) for name in same}
    assert list(message.choice_scores) == [0.25, 0.75] and list(message.token_ids) == [7, 8]
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (5, 6)
    assert (message.cached_stamp.sec, message.cached_stamp.nanosec) == (4, 3)
    assert message.header.frame_id == 'lens'
    assert message.level == AnswerMessage.LEVEL_FRAME and message.image_age == Duration(nanosec=500_000_000)
    assert message.lag == Duration(nanosec=250_000_000)


def test_a_refresh_keeps_its_counts_and_times():
    refreshed, stale = np.array([[1, 1, 0, 0]], bool), np.array([[0, 0, 1, 0]], bool)
    refresh = Refresh(
        'front',
        5_000_000_006,
        'lens',
        Level.FRAME,
        'why',
        refreshed,
        stale,
        0.5,
        0.25,
        9.0,
        1.0,
        2.0,
        4.0,
        Totals(300.0, 400.0, 100.0),
        changed=np.array([[0, 1, 0, 0]], bool),
    )
    message = budget_message(refresh, 30, 4, 5)
    assert (message.visual_tokens_total, message.visual_tokens_refreshed, message.visual_tokens_stale) == (4, 2, 1)
    assert message.visual_tokens_changed == 1
    assert (message.frames_received, message.frames_dropped, message.frames_refused) == (30, 4, 5)
    assert (message.change_ms, message.vision_ms, message.prefill_ms, message.spent_ms) == (1.0, 2.0, 4.0, 7.0)
    assert message.budget_ms == 9.0
    assert (message.camera, message.level, message.reason) == ('front', RefreshBudget.LEVEL_FRAME, 'why')
    assert message.oldest_cell_age == Duration(nanosec=500_000_000) and message.lag == Duration(nanosec=250_000_000)
    assert (message.work_ms_total, message.cold_ms_total, message.credit_ms) == (300.0, 400.0, 100.0)
    assert (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) == (5, 6, 'lens')


def test_a_request_becomes_a_question():
    request = AskScene.Request(
        question='what ?',
        choices=['a', 'b'],
        json_schema='{}',
        max_tokens=3,
        max_age=Duration(sec=1, nanosec=500_000_000),
        max_lag=Duration(nanosec=250_000_000),
        timeout=Duration(sec=2, nanosec=500_000_000),
        force_refresh=True,
    )
    assert question_of(request) == Question('what ?', ('a', 'b'), '{}', 3, 1.5, 0.25, 2.5, True)


def test_a_request_for_a_standing_question_comes_back_in_its_list():
    request = AddWatch.Request(
        camera='front',
        question='is it open ?',
        choices=['yes', 'no'],
        margin=0.25,
        max_lag=Duration(sec=1, nanosec=500_000_000),
        region=RegionOfInterest(x_offset=1, y_offset=2, width=3, height=4),
    )
    assert watch_of(request).question.max_lag_s == 1.5
    message = watch_message(watch_of(request))
    for name in request.get_fields_and_field_types():
        assert getattr(message, name) == getattr(request, name)
