"""Standing questions: asked again only when cells that they depend on changed, told only when their answer did.

No MLX and no ROS; the worker says what was refreshed and puts the questions to the model.
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
    """All standing questions. Thread-safe; each waits at the model at most once.

    A question that got no answer (the model failed, there was no picture) is asked again with the next picture.
    """

    _ids = count(1)  # of the process: one that somebody remembers names nothing else later

    def __init__(
        self,
        ask: Callable[[Watch, int, Future[Answer]], None],
        on_answer: Callable[[Watch, Answer | None], None],
    ):
        """Start without any.

        ask: puts a question to the model, which answers the future; takes the node clock's time, ns.
        on_answer: called on the model's thread with a watch that has a new answer, and the one that held before.
        """
        self._ask, self._on_answer = ask, on_answer
        self._lock = Lock()
        self._watches: dict[int, Watch] = {}
        self._waiting: dict[int, Future[Answer]] = {}
        self._unanswered: set[int] = set()
        self._unsure: set[int] = set()  # those whose last answer came from a patched state

    def add(self, watch: Watch, now_ns: int, size: tuple[int, int] | None = None) -> tuple[Watch, Future[Answer]]:
        """Keep a standing question and ask it for the first time.

        size: (height, width) of the camera's picture, None while it is not known. Its watch_id is given here.
        Raises InvalidRequestError for one that cannot stand, and when MOST_WATCHES stand already.
        """
        watch.check(size)
        lasting = replace(watch.question, max_age_s=math.inf, timeout_s=math.inf)
        with self._lock:
            if len(self._watches) >= MOST_WATCHES:
                raise InvalidRequestError(f'{MOST_WATCHES} questions stand already; remove one first.')
            watch = replace(watch, watch_id=next(self._ids), question=lasting, answer=None)
            self._watches[watch.watch_id] = watch
            future = self._waits(watch)
        self._ask(watch, now_ns, future)
        return watch, future

    def remove(self, watch_id: int) -> None:
        """Forget a standing question. Raises InvalidRequestError for a watch_id that names none."""
        with self._lock:
            if self._watches.pop(watch_id, None) is None:
                raise InvalidRequestError(
                    f'There is no standing question {watch_id}; there are {sorted(self._watches) or "none"}.'
                )
            self._unanswered.discard(watch_id)
            self._unsure.discard(watch_id)
            waiting = self._waiting.pop(watch_id, None)
        if waiting:
            waiting.cancel()

    def all(self) -> list[Watch]:
        """Every standing question, the oldest first."""
        with self._lock:
            return list(self._watches.values())

    def see(self, frame: Frame, refresh: Refresh) -> None:
        """Ask again what depends on the cells that this refresh changed. Called on the model's thread.

        And, when everything was computed, what was answered from a patched state: that answer was approximate.
        """
        is_whole = refresh.level in (Level.FRAME, Level.FULL)
        with self._lock:
            due = [
                watch
                for watch in self._watches.values()
                if watch.camera == frame.camera
                and watch.watch_id not in self._waiting
                and (
                    watch.watch_id in self._unanswered
                    or (is_whole and watch.watch_id in self._unsure)
                    or watch.region.touches(refresh.changed, frame.size)
                )
            ]
            asked = [(watch, self._waits(watch)) for watch in due]
        for watch, future in asked:
            self._ask(watch, frame.received_ns or frame.stamp_ns, future)

    def _waits(self, watch: Watch) -> Future[Answer]:
        """Begin to wait for an answer; its future exists before the model knows of it, so that none is missed."""
        future = self._waiting[watch.watch_id] = Future()
        future.add_done_callback(partial(self._take, watch.watch_id))
        return future

    def _take(self, watch_id: int, future: Future[Answer]) -> None:
        """Note an answer; tell it when it takes the place of the one that held."""
        answer = None if future.cancelled() else future.result()
        with self._lock:
            self._waiting.pop(watch_id, None)
            if (watch := self._watches.get(watch_id)) is None:
                return
            self._unanswered.discard(watch_id)
            if answer is None or answer.status is not Status.OK:
                if answer is None or answer.status is not Status.INVALID_REQUEST:  # that stays so without a change
                    self._unanswered.add(watch_id)
                return
            if answer.exact:
                self._unsure.discard(watch_id)
            else:
                self._unsure.add(watch_id)
            if not watch.is_replaced_by(answer):
                return
            self._watches[watch_id] = replace(watch, answer=answer)
        self._on_answer(replace(watch, answer=answer), watch.answer)
