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

"""Standing questions: asked again only when cells in their region changed, reported only when their answer changed.

No MLX and no ROS. The worker reports every refresh, and asks the model.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import count
from threading import Lock

from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.serving.watch import Watch
from vlm_reuse_node.session.answer import Answer, Status

MOST_WATCHES = 64


class Watches:
    """All standing questions. Thread-safe. Each of them waits for the model at most once at a time.

    A question that got no answer (the model failed, or there was no picture) is asked again with the next picture.
    """

    _ids = count(1)  # shared by all instances: an old id never refers to a new question

    def __init__(
        self,
        ask: Callable[[Watch, int, Future[Answer]], None],
        on_answer: Callable[[Watch, Answer | None], None],
    ) -> None:
        """Start without any.

        ask: queues a question for the model, which sets the future. Called with the time on the node's clock, ns.
        on_answer: called on the model's thread with a watch that has a new answer, and with the previous answer.
        """
        self._ask, self._on_answer = ask, on_answer
        self._lock = Lock()
        self._watches: dict[int, Watch] = {}
        self._waiting: dict[int, Future[Answer]] = {}
        self._newer: dict[int, Frame] = {}  # frames that affect a question which is at the model already
        self._unanswered: set[int] = set()
        self._approximate: set[int] = set()  # watches whose last answer came from a patched state

    def add(self, watch: Watch, now_ns: int, size: tuple[int, int] | None = None) -> tuple[Watch, Future[Answer]]:
        """Keep a standing question and ask it for the first time.

        size: (height, width) of the camera's picture; None while it is not known. Returns the watch with its new
        watch_id, and the future of its first answer. Raises InvalidRequestError for an invalid watch, and when there
        are MOST_WATCHES already.
        """
        watch.check(size)
        lasting = replace(watch.question, max_age_s=math.inf, timeout_s=math.inf)
        with self._lock:
            if len(self._watches) >= MOST_WATCHES:
                raise InvalidRequestError(f'At most {MOST_WATCHES} standing questions are allowed; remove one first.')
            watch = replace(watch, watch_id=next(self._ids), question=lasting, answer=None)
            self._watches[watch.watch_id] = watch
            future = self._new_future(watch)
        self._ask(watch, now_ns, future)
        return watch, future

    def remove(self, watch_id: int) -> None:
        """Remove a standing question. Raises InvalidRequestError for an unknown watch_id."""
        with self._lock:
            if self._watches.pop(watch_id, None) is None:
                raise InvalidRequestError(
                    f'There is no standing question {watch_id}; known are {sorted(self._watches) or "none"}.'
                )
            self._newer.pop(watch_id, None)
            self._unanswered.discard(watch_id)
            self._approximate.discard(watch_id)
            waiting = self._waiting.pop(watch_id, None)
        if waiting:
            waiting.cancel()

    def all(self) -> list[Watch]:
        """All standing questions, the oldest first."""
        with self._lock:
            return list(self._watches.values())

    def see(self, frame: Frame, refresh: Refresh, max_lag_s: float = 0.0) -> None:
        """Ask the questions again that this look or refresh affects. Called on any thread.

        max_lag_s: the lag that a question allows if it does not say how much.
        These are the questions with a changed cell in their region, and those without an answer. After a look the
        lag must be more than the question allows, unless there is no state at all: it has no lag. After a refresh of
        the whole frame they include those whose last answer came from a patched state, because it was approximate.
        A question that is at the model is asked again afterwards, if its answer comes from an older frame.
        """
        is_whole = refresh.level in (Level.FRAME, Level.FULL)
        with self._lock:
            due = [
                watch
                for watch in self._watches.values()
                if watch.camera == frame.camera
                and (
                    watch.watch_id in self._unanswered
                    or (is_whole and watch.watch_id in self._approximate)
                    or (
                        (
                            refresh.level != Level.REUSE
                            or not 0 < refresh.lag_s <= (watch.question.max_lag_s or max_lag_s)
                        )
                        and watch.region.touches(refresh.changed, frame.size)
                    )
                )
            ]
            self._newer |= {watch.watch_id: frame for watch in due if watch.watch_id in self._waiting}
            waiting = [(watch, self._new_future(watch)) for watch in due if watch.watch_id not in self._waiting]
        for watch, future in waiting:
            self._ask_about(frame, watch, future)

    def _ask_about(self, frame: Frame, watch: Watch, future: Future[Answer]) -> None:
        self._ask(watch, frame.received_ns or frame.stamp_ns, future)

    def _new_future(self, watch: Watch) -> Future[Answer]:
        """Create the future of an answer. It exists before the question is queued, so no answer is missed."""
        future = self._waiting[watch.watch_id] = Future()
        future.add_done_callback(partial(self._on_done, watch.watch_id))
        return future

    def _on_done(self, watch_id: int, future: Future[Answer]) -> None:
        """Record an answer, and report it when it replaces the current one. Ask again if a newer frame affects it."""
        answer = None if future.cancelled() else future.result()
        with self._lock:
            self._waiting.pop(watch_id, None)
            newer = self._newer.pop(watch_id, None)
            if (watch := self._watches.get(watch_id)) is None:
                return
            self._unanswered.discard(watch_id)
            if answer is None or answer.status is not Status.OK:
                if answer is None or answer.status is not Status.INVALID_REQUEST:  # invalid until a cell changes
                    self._unanswered.add(watch_id)
                return
            if answer.exact:
                self._approximate.discard(watch_id)
            else:
                self._approximate.add(watch_id)
            is_new = watch.is_replaced_by(answer)
            kept = self._watches[watch_id] = replace(watch, answer=answer) if is_new else watch
            again = self._new_future(kept) if newer and answer.stamp_ns < newer.stamp_ns else None
        if is_new:
            self._on_answer(kept, watch.answer)
        if again:
            self._ask_about(newer, kept, again)
