"""Standing questions: asked again only when cells that they depend on changed, told only when their answer did.

No MLX and no ROS; the worker says what was refreshed and puts the questions to the model.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock

import numpy as np

from vlm_reuse_node.budget import Answer, Question, Refresh, Status
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.frame import Frame


@dataclass(frozen=True)
class Region:
    """A part of a camera's picture: left, top, width and height in its pixels. Width and height 0: all of it."""

    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0

    def touches(self, cells: np.ndarray, size: tuple[int, int]) -> bool:
        """Whether one of these cells, (rows, columns) bool, lies in it or at its border.

        size: (height, width) of the picture, which the cells cover evenly. A region outside the picture touches none.
        """
        if not self.width and not self.height:
            return bool(cells.any())
        spans = ((self.y, self.height, size[0], cells.shape[0]), (self.x, self.width, size[1], cells.shape[1]))
        rows, columns = (slice(first * count // pixels, math.ceil((first + extent) * count / pixels))
                         for first, extent, pixels, count in spans)
        return bool(cells[rows, columns].any())


@dataclass(frozen=True)
class Watch:
    """A standing question.

    number: names it, from 1 on, never given twice. question: with choices. margin: how much more probable another
    choice must be than the one that holds before it takes its place. answer: the one that holds, None before the first.
    """

    number: int
    camera: str
    question: Question
    margin: float = 0.0
    region: Region = Region()
    answer: Answer | None = None


class Watches:
    """All standing questions. Thread-safe; each waits at the model at most once.

    A question that got no answer (the model failed, there was no picture) is asked again with the next picture.
    """

    def __init__(self, ask: Callable[[Watch, int], Future[Answer]],
                 on_answer: Callable[[Watch, Answer | None], None] | None = None):
        """Start without any.

        ask: puts a question to the model, which calls the future's callbacks; takes the node clock's time, ns.
        on_answer: called on the model's thread with a watch that has a new answer, and the one that held before.
        """
        self._ask, self._on_answer = ask, on_answer
        self._lock = Lock()
        self._watches: dict[int, Watch] = {}
        self._waiting: dict[int, Future[Answer]] = {}
        self._owed: set[int] = set()
        self._numbers = 0

    def add(self, watch: Watch, now_ns: int, limit: int) -> tuple[Watch, Future[Answer]]:
        """Keep a standing question and ask it for the first time.

        Its number is given here. Raises InvalidRequestError for one that cannot stand, or when `limit` stand already.
        """
        if len(watch.question.choices) < 2:
            raise InvalidRequestError(f'A standing question needs at least 2 choices; got '
                                      f'{len(watch.question.choices)}.')
        if not 0 <= watch.margin <= 1:
            raise InvalidRequestError(f'margin is {watch.margin}; expected 0 to 1.')
        lasting = replace(watch.question, max_age_s=math.inf, timeout_s=math.inf)
        with self._lock:
            if len(self._watches) >= limit:
                raise InvalidRequestError(f'{limit} questions stand already (max_watches); remove one first.')
            self._numbers += 1
            watch = replace(watch, number=self._numbers, question=lasting, answer=None)
            self._watches[watch.number] = watch
            future = self._put(watch, now_ns)
        future.add_done_callback(partial(self._take, watch.number))
        return watch, future

    def remove(self, number: int) -> None:
        """Forget a standing question. Raises InvalidRequestError for a number that names none."""
        with self._lock:
            if self._watches.pop(number, None) is None:
                raise InvalidRequestError(f'There is no standing question {number}; there are '
                                          f'{sorted(self._watches) or "none"}.')
            self._owed.discard(number)
            waiting = self._waiting.pop(number, None)
        if waiting:
            waiting.cancel()

    def all(self) -> list[Watch]:
        """Every standing question, the oldest first."""
        with self._lock:
            return list(self._watches.values())

    def see(self, frame: Frame, refresh: Refresh) -> None:
        """Ask again what depends on the cells that this refresh changed. Called on the model's thread."""
        with self._lock:
            due = [watch for watch in self._watches.values() if watch.camera == frame.camera
                   and watch.number not in self._waiting
                   and (watch.number in self._owed or watch.region.touches(refresh.changed, frame.size))]
            asked = [(watch.number, self._put(watch, frame.received_ns or frame.stamp_ns)) for watch in due]
        for number, future in asked:
            future.add_done_callback(partial(self._take, number))

    def _put(self, watch, now_ns):
        self._waiting[watch.number] = self._ask(watch, now_ns)
        return self._waiting[watch.number]

    def _take(self, number, future):
        """Note an answer; tell it when it takes the place of the one that held."""
        answer = None if future.cancelled() else future.result()
        with self._lock:
            self._waiting.pop(number, None)
            if (watch := self._watches.get(number)) is None:
                return
            if answer is None or answer.status is not Status.OK:
                self._owed.add(number)
                return
            self._owed.discard(number)
            if not _takes_over(answer, watch):
                return
            self._watches[number] = replace(watch, answer=answer)
        if self._on_answer:
            self._on_answer(replace(watch, answer=answer), watch.answer)


def _takes_over(answer: Answer, watch: Watch) -> bool:
    """Whether an answer takes the place of the one that holds."""
    if watch.answer is None:
        return True
    held, new = watch.answer.choice_index, answer.choice_index
    return new != held and answer.choice_scores[new] - answer.choice_scores[held] >= watch.margin
