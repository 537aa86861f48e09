"""Standing questions: asked again only when cells that they depend on changed, told only when their answer did.

No MLX and no ROS; the worker says what was refreshed and puts the questions to the model.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from threading import Lock

import numpy as np

from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question


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
        rows, columns = (
            slice(first * count // pixels, math.ceil((first + extent) * count / pixels))
            for first, extent, pixels, count in spans
        )
        return bool(cells[rows, columns].any())


@dataclass(frozen=True)
class Watch:
    """A standing question.

    number: names it, above 0, never given twice in a process. question: with choices. margin: how much more probable
    another choice must be than the one that holds before it takes its place. answer: the one that holds, None before
    the first.
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

    _numbers = count(1)  # of the process: a number that somebody remembers names nothing else later

    def __init__(
        self,
        ask: Callable[[Watch, int, Future[Answer]], None],
        on_answer: Callable[[Watch, Answer | None], None] | None = None,
    ):
        """Start without any.

        ask: puts a question to the model, which answers the future; takes the node clock's time, ns.
        on_answer: called on the model's thread with a watch that has a new answer, and the one that held before.
        """
        self._ask, self._on_answer = ask, on_answer
        self._lock = Lock()
        self._watches: dict[int, Watch] = {}
        self._waiting: dict[int, Future[Answer]] = {}
        self._owed: set[int] = set()  # those without an answer
        self._unsure: set[int] = set()  # those whose last answer came from a patched state

    def add(self, watch: Watch, now_ns: int, limit: int) -> tuple[Watch, Future[Answer]]:
        """Keep a standing question and ask it for the first time.

        Its number is given here. Raises InvalidRequestError for one that cannot stand, or when `limit` stand already.
        """
        if len(watch.question.choices) < 2:
            raise InvalidRequestError(
                f'A standing question needs at least 2 choices; got {len(watch.question.choices)}.'
            )
        if not 0 <= watch.margin <= 1:
            raise InvalidRequestError(f'margin is {watch.margin}; expected 0 to 1.')
        if bool(watch.region.width) != bool(watch.region.height):
            raise InvalidRequestError(
                f'region is {watch.region.width} x {watch.region.height} px; expected both above '
                '0, or both 0 for the whole picture.'
            )
        lasting = replace(watch.question, max_age_s=math.inf, timeout_s=math.inf)
        with self._lock:
            if len(self._watches) >= limit:
                raise InvalidRequestError(f'{limit} questions stand already (max_watches); remove one first.')
            watch = replace(watch, number=next(self._numbers), question=lasting, answer=None)
            self._watches[watch.number] = watch
            future = self._waits(watch)
        self._ask(watch, now_ns, future)
        return watch, future

    def remove(self, number: int) -> None:
        """Forget a standing question. Raises InvalidRequestError for a number that names none."""
        with self._lock:
            if self._watches.pop(number, None) is None:
                raise InvalidRequestError(
                    f'There is no standing question {number}; there are {sorted(self._watches) or "none"}.'
                )
            self._owed.discard(number)
            self._unsure.discard(number)
            waiting = self._waiting.pop(number, None)
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
                and watch.number not in self._waiting
                and (
                    watch.number in self._owed
                    or (is_whole and watch.number in self._unsure)
                    or watch.region.touches(refresh.changed, frame.size)
                )
            ]
            asked = [(watch, self._waits(watch)) for watch in due]
        for watch, future in asked:
            self._ask(watch, frame.received_ns or frame.stamp_ns, future)

    def _waits(self, watch):
        """Begin to wait for an answer; its future exists before the model knows of it, so that none is missed."""
        future = self._waiting[watch.number] = Future()
        future.add_done_callback(partial(self._take, watch.number))
        return future

    def _take(self, number, future):
        """Note an answer; tell it when it takes the place of the one that held."""
        answer = None if future.cancelled() else future.result()
        with self._lock:
            self._waiting.pop(number, None)
            if (watch := self._watches.get(number)) is None:
                return
            self._owed.discard(number)
            if answer is None or answer.status is not Status.OK:
                if answer is None or answer.status is not Status.INVALID_REQUEST:  # that stays so without a change
                    self._owed.add(number)
                return
            (self._unsure.discard if answer.exact else self._unsure.add)(number)
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
