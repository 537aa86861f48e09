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

"""Converts the engine's records to this package's messages and back, field by field.

Times that a planner sets or compares are a `Duration`. Measured costs are milliseconds.
"""

from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header
from vlm_reuse_interfaces.action import AskScene as AskSceneAction
from vlm_reuse_interfaces.msg import Answer as AnswerMessage
from vlm_reuse_interfaces.msg import RefreshBudget, WatchAnswer
from vlm_reuse_interfaces.msg import Watch as WatchMessage
from vlm_reuse_interfaces.srv import AddWatch, AskScene

from vlm_reuse_node.plain_text import one_line
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.serving.watch import Region, Watch
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.embedded_model import marked
from vlm_reuse_node.session.progress import Progress
from vlm_reuse_node.session.question import Question

_STATUS_NUMBERS = {status: number for number, status in enumerate(Status)}
_LEVEL_NUMBERS = {level: getattr(AnswerMessage, f'LEVEL_{level.name}') for level in Level}
_LEVELS = {number: level for level, number in _LEVEL_NUMBERS.items()}

_SECOND_NS = 1_000_000_000
_SHORTEST_NS, _LONGEST_NS = -(2**31) * _SECOND_NS, 2**31 * _SECOND_NS - 1  # of a Duration


def header_of(stamp_ns: int, frame_id: str) -> Header:
    """Build a header from a stamp in nanoseconds and a frame_id."""
    return Header(stamp=_time(stamp_ns), frame_id=frame_id)


def duration_of(seconds: float) -> Duration:
    """Convert seconds to a duration. Values out of range become the longest or shortest duration; NaN the longest."""
    nanoseconds = max(_SHORTEST_NS, min(_LONGEST_NS, seconds * _SECOND_NS))
    whole, rest = divmod(round(nanoseconds), _SECOND_NS)
    return Duration(sec=whole, nanosec=rest)


def seconds_of(duration: Duration) -> float:
    """Convert a duration to seconds."""
    return (duration.sec * _SECOND_NS + duration.nanosec) / _SECOND_NS


def level_of(message: AnswerMessage | RefreshBudget) -> Level | str:
    """Convert a message's level; LEVEL_NONE becomes ''."""
    return _LEVELS.get(message.level, '')


def question_of(request: AskScene.Request | AskSceneAction.Goal) -> Question:
    """Convert an `AskScene` request or goal to a question, without checking it. The engine checks it."""
    return Question(
        text=request.question,
        choices=tuple(request.choices),
        json_schema=request.json_schema,
        max_tokens=request.max_tokens,
        max_age_s=seconds_of(request.max_age),
        max_lag_s=seconds_of(request.max_lag),
        timeout_s=seconds_of(request.timeout),
        force_refresh=request.force_refresh,
    )


def answer_message(answer: Answer) -> AnswerMessage:
    """Convert an answer to `msg/Answer`. An answer of the embedded model about another scene is marked."""
    answer = marked(answer)
    return AnswerMessage(
        header=header_of(answer.stamp_ns, answer.frame_id),
        status=_STATUS_NUMBERS[answer.status],
        message=one_line(answer.message),
        text=answer.text,
        choice_index=answer.choice_index,
        choice_scores=[float(score) for score in answer.choice_scores],
        confidence=float(answer.confidence),
        camera=one_line(answer.camera),
        cached_stamp=_time(answer.cached_stamp_ns),
        image_age=duration_of(answer.image_age_s),
        lag=duration_of(answer.lag_s),
        model=answer.model,
        level=_LEVEL_NUMBERS[answer.level] if answer.level else AnswerMessage.LEVEL_NONE,
        exact=answer.exact,
        escalated=answer.escalated,
        remembered=answer.remembered,
        tokens_reused=answer.tokens_reused,
        tokens_prefilled=answer.tokens_prefilled,
        tokens_generated=answer.tokens_generated,
        token_ids=list(answer.token_ids),
        queue_ms=float(answer.queue_ms),
        refresh_ms=float(answer.refresh_ms),
        prefill_ms=float(answer.prefill_ms),
        decode_ms=float(answer.decode_ms),
        total_ms=float(answer.total_ms),
    )


def answer_of(message: AnswerMessage) -> Answer:
    """Convert a message to the answer it was made from. `choice_scores` and times have single precision."""
    same = (
        'message', 'text', 'choice_index', 'confidence', 'camera', 'model', 'exact', 'escalated', 'remembered',
        'tokens_reused', 'tokens_prefilled', 'tokens_generated', 'queue_ms', 'refresh_ms', 'prefill_ms', 'decode_ms',
    )  # fmt: skip
    return Answer(
        list(Status)[message.status],
        choice_scores=tuple(message.choice_scores),
        stamp_ns=_ns(message.header.stamp),
        frame_id=message.header.frame_id,
        cached_stamp_ns=_ns(message.cached_stamp),
        lag_s=seconds_of(message.lag),
        image_age_s=seconds_of(message.image_age),
        level=_LEVELS.get(message.level),
        token_ids=tuple(message.token_ids),
        **{name: getattr(message, name) for name in same},
    )


def progress_message(progress: Progress) -> AskSceneAction.Feedback:
    """Convert progress to the feedback of `action/AskScene`."""
    return AskSceneAction.Feedback(stage=progress.stage, text=progress.text, tokens_generated=progress.tokens_generated)


def watch_of(request: AddWatch.Request) -> Watch:
    """Convert an `AddWatch` request to a standing question, without checking it. The engine checks it."""
    region = request.region
    return Watch(
        0,
        request.camera,
        Question(request.question, tuple(request.choices), max_lag_s=seconds_of(request.max_lag)),
        float(request.margin),
        Region(region.x_offset, region.y_offset, region.width, region.height),
    )


def watch_message(watch: Watch) -> WatchMessage:
    """Convert a standing question to `msg/Watch`."""
    region = watch.region
    return WatchMessage(
        watch_id=watch.watch_id,
        camera=one_line(watch.camera),
        question=watch.question.text,
        choices=list(watch.question.choices),
        margin=float(watch.margin),
        max_lag=duration_of(watch.question.max_lag_s),
        answer=answer_message(watch.answer or Answer(Status.NO_IMAGE)),
        region=RegionOfInterest(x_offset=region.x, y_offset=region.y, width=region.width, height=region.height),
    )


def watch_answer_message(watch: Watch, before: Answer | None) -> WatchAnswer:
    """Convert a standing question with its new and its previous answer to `msg/WatchAnswer`."""
    message, old = watch_message(watch), before or Answer(Status.NO_IMAGE)
    return WatchAnswer(
        header=message.answer.header, watch=message, old_choice_index=old.choice_index, old_text=old.text
    )


def budget_message(refresh: Refresh, received: int, dropped: int, refused: int) -> RefreshBudget:
    """Convert a refresh and its camera's counts since the start to `msg/RefreshBudget`."""
    return RefreshBudget(
        header=header_of(refresh.stamp_ns, refresh.frame_id),
        camera=refresh.camera,
        level=_LEVEL_NUMBERS[refresh.level],
        reason=one_line(refresh.reason),
        visual_tokens_total=refresh.visual_tokens_total,
        visual_tokens_refreshed=refresh.visual_tokens_refreshed,
        visual_tokens_encoded=refresh.visual_tokens_encoded,
        visual_tokens_changed=refresh.visual_tokens_changed,
        visual_tokens_stale=refresh.visual_tokens_stale,
        lag=duration_of(refresh.lag_s),
        oldest_cell_age=duration_of(refresh.oldest_cell_age_s),
        budget_ms=float(refresh.budget_ms),
        spent_ms=float(refresh.spent_ms),
        change_ms=float(refresh.change_ms),
        vision_ms=float(refresh.vision_ms),
        prefill_ms=float(refresh.prefill_ms),
        work_ms_total=float(refresh.totals.work_ms),
        cold_ms_total=float(refresh.totals.cold_ms),
        credit_ms=float(refresh.totals.credit_ms),
        frames_received=received,
        frames_dropped=dropped,
        frames_refused=refused,
    )


def _time(stamp_ns: int) -> Time:
    seconds, nanoseconds = divmod(stamp_ns, _SECOND_NS)
    return Time(sec=seconds, nanosec=nanoseconds)


def _ns(stamp: Time) -> int:
    return stamp.sec * _SECOND_NS + stamp.nanosec
