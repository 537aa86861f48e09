"""The engine's records to this package's messages and back; field for field, no arithmetic."""

from builtin_interfaces.msg import Time
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header
from vlm_reuse_interfaces.action import AskScene as AskSceneAction
from vlm_reuse_interfaces.msg import Answer as AnswerMessage
from vlm_reuse_interfaces.msg import RefreshBudget, WatchAnswer
from vlm_reuse_interfaces.msg import Watch as WatchMessage

from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.serving.watch import Region, Watch
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.progress import Progress
from vlm_reuse_node.session.question import Question

_STATUS_NUMBERS = {status: number for number, status in enumerate(Status)}


def header_of(stamp_ns: int, frame_id: str) -> Header:
    """Build a header from nanoseconds and a frame."""
    return Header(stamp=_time(stamp_ns), frame_id=frame_id)


def question_of(request) -> Question:
    """Read an `AskScene` request (service or action goal); the engine checks it."""
    return Question(
        text=request.question,
        choices=tuple(request.choices),
        json_schema=request.json_schema,
        max_tokens=request.max_tokens,
        max_age_s=request.max_age_s,
        timeout_s=request.timeout_s,
        force_refresh=request.force_refresh,
    )


def answer_message(answer: Answer) -> AnswerMessage:
    """Write an answer as `msg/Answer`."""
    return AnswerMessage(
        status=_STATUS_NUMBERS[answer.status],
        message=answer.message,
        text=answer.text,
        choice_index=answer.choice_index,
        choice_scores=[float(score) for score in answer.choice_scores],
        confidence=float(answer.confidence),
        camera=answer.camera,
        image_header=header_of(answer.stamp_ns, answer.frame_id),
        cached_stamp=_time(answer.cached_stamp_ns),
        image_age_s=float(answer.image_age_s),
        model=answer.model,
        level=str(answer.level),
        exact=answer.exact,
        escalated=answer.escalated,
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


def progress_message(progress: Progress) -> AskSceneAction.Feedback:
    """Write the feedback of `action/AskScene`."""
    return AskSceneAction.Feedback(stage=progress.stage, text=progress.text, tokens_generated=progress.tokens_generated)


def watch_of(request) -> Watch:
    """Read a `WatchScene` request that adds a standing question; the engine checks it."""
    region = request.region
    return Watch(
        0,
        request.camera,
        Question(request.question, tuple(request.choices)),
        float(request.margin),
        Region(region.x_offset, region.y_offset, region.width, region.height),
    )


def watch_message(watch: Watch) -> WatchMessage:
    """Write a standing question as `msg/Watch`."""
    region = watch.region
    return WatchMessage(
        watch_id=watch.number,
        camera=watch.camera,
        question=watch.question.text,
        choices=list(watch.question.choices),
        margin=float(watch.margin),
        answer=answer_message(watch.answer or Answer(Status.NO_IMAGE)),
        region=RegionOfInterest(x_offset=region.x, y_offset=region.y, width=region.width, height=region.height),
    )


def watch_answer_message(watch: Watch, before: Answer | None) -> WatchAnswer:
    """Write a new answer of a standing question, and the one that held before, as `msg/WatchAnswer`."""
    old = before or Answer(Status.NO_IMAGE)
    return WatchAnswer(watch=watch_message(watch), old_choice_index=old.choice_index, old_text=old.text)


def budget_message(refresh: Refresh, seen: int, dropped: int, refused: int) -> RefreshBudget:
    """Write a refresh as `msg/RefreshBudget`, with its camera's counts since the start."""
    return RefreshBudget(
        header=header_of(refresh.stamp_ns, refresh.frame_id),
        camera=refresh.camera,
        level=str(refresh.level),
        reason=refresh.reason,
        visual_tokens_total=refresh.visual_tokens_total,
        visual_tokens_refreshed=refresh.visual_tokens_refreshed,
        visual_tokens_changed=refresh.visual_tokens_changed,
        visual_tokens_deferred=refresh.visual_tokens_deferred,
        oldest_cell_age_s=float(refresh.oldest_cell_age_s),
        budget_ms=float(refresh.budget_ms),
        spent_ms=float(refresh.spent_ms),
        change_ms=float(refresh.change_ms),
        vision_ms=float(refresh.vision_ms),
        prefill_ms=float(refresh.prefill_ms),
        frames_seen=seen,
        frames_dropped=dropped,
        frames_refused=refused,
    )


def _time(stamp_ns: int) -> Time:
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return Time(sec=seconds, nanosec=nanoseconds)
