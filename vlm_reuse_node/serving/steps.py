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

"""What is logged at debug: picture, look, refresh, question, answer, one line each. All of it is written here."""

import logging
from concurrent.futures import Future

from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.serving.queued_question import QueuedQuestion
from vlm_reuse_node.session.answer import Answer

_log = logging.getLogger(__name__)


def picture_came(frame: Frame) -> None:
    """A picture waits to be looked at."""
    _log.debug("Camera '%s': picture %.3f s came, %d x %d.", frame.camera, frame.stamp_ns / 1e9, *frame.size[::-1])


def picture_used(refresh: Refresh) -> None:
    """A picture was looked at, or the state was brought up to it."""
    camera, stamp_s = refresh.camera, refresh.stamp_ns / 1e9
    if refresh.level is Level.REUSE:
        counts = refresh.visual_tokens_stale, refresh.visual_tokens_total
        _log.debug(
            "Camera '%s': looked at picture %.3f s: %d of %d cells are stale; %.1f ms.",
            *(camera, stamp_s, *counts, refresh.change_ms),
        )
    else:
        counts = refresh.visual_tokens_refreshed, refresh.visual_tokens_total
        _log.debug(
            "Camera '%s': refresh '%s' to picture %.3f s (%s): %d of %d cells computed; %.1f ms.",
            *(camera, refresh.level, stamp_s, refresh.reason, *counts, refresh.spent_ms),
        )


def question_came(queued: QueuedQuestion) -> None:
    """A question waits. Its answer is logged too, when it is there."""
    if _log.isEnabledFor(logging.DEBUG):
        kind = 'standing question' if queued.is_standing else 'cold question' if queued.cold else 'question'
        _log.debug("Camera '%s': %s %r waits.", queued.camera, kind, queued.question.text)
        queued.future.add_done_callback(_answered)


def _answered(future: Future[Answer]) -> None:
    if future.cancelled():
        _log.debug('A question was cancelled; it gets no answer.')
        return
    answer = future.result()
    _log.debug(
        "Camera '%s': answer %s %r, level %s, of picture %.3f s; "
        'waited %.1f ms, refresh %.1f ms, prefill %.1f ms, decode %.1f ms.',
        *(answer.camera, answer.status, answer.text, answer.level or 'none', answer.stamp_ns / 1e9),
        *(answer.queue_ms, answer.refresh_ms, answer.prefill_ms, answer.decode_ms),
    )
