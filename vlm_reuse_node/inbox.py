"""What waits for the model: resets, questions in order, and the newest frame of each camera. Thread-safe.

Memory does not grow with the frame rate: a camera's older waiting frame is replaced.
"""

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from vlm_reuse_node.budget import Answer, Question
from vlm_reuse_node.frame import Frame


@dataclass(frozen=True, eq=False)
class Ask:
    """A question that waits. Its future stays pending until the answer, so that it can be cancelled at any time.

    now_ns: the node clock at the asking. cold: answer from nothing. event: set to cancel. asked_s: the steady clock.
    """

    camera: str
    question: Question
    now_ns: int
    cold: bool
    event: threading.Event | None
    future: Future[Answer] = field(default_factory=Future)
    asked_s: float = field(default_factory=time.perf_counter)

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self.future.cancelled() or (self.event is not None and self.event.is_set())

    def is_late(self, default_timeout_s: float) -> bool:
        """Whether its time has passed; an invalid timeout is left to the session."""
        timeout_s = self.question.timeout_s or default_timeout_s
        return 0 < timeout_s <= time.perf_counter() - self.asked_s


@dataclass(frozen=True)
class Reset:
    """A camera whose state is to be forgotten."""

    camera: str


class Inbox:
    """Filled by any thread, emptied by the model's."""

    def __init__(self):
        """Start open and empty."""
        self._changed = threading.Condition()
        self._asks: deque[Ask] = deque()
        self._frames: dict[str, Frame] = {}
        self._resets: deque[Reset] = deque()
        self.is_open = True

    def __len__(self) -> int:
        """Questions that wait."""
        return len(self._asks)

    def put_frame(self, frame: Frame) -> bool:
        """Leave the newest frame of a camera. Returns False when it replaced one that waited."""
        with self._changed:
            replaced = frame.camera in self._frames
            self._frames[frame.camera] = frame
            self._changed.notify()
        return not replaced

    def put_ask(self, ask: Ask, limit: int) -> bool:
        """Leave a question. Returns False when the inbox is closed or `limit` questions wait already."""
        with self._changed:
            if not self.is_open or len(self._asks) >= limit:
                return False
            self._asks.append(ask)
            self._changed.notify()
        return True

    def put_reset(self, camera: str) -> None:
        """Have a camera forgotten, its waiting frame at once."""
        with self._changed:
            self._frames.pop(camera, None)
            self._resets.append(Reset(camera))
            self._changed.notify()

    def next(self, wait_s: float | None = None) -> Reset | Ask | Frame | None:
        """Wait for the next thing to do: resets first, then questions, then frames. None when closed.

        wait_s: gives None after so many seconds with nothing to do; None waits for ever.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._resets or self._asks or self._frames or not self.is_open, wait_s)
            if not self.is_open or not (self._resets or self._asks or self._frames):
                return None
            for waiting in (self._resets, self._asks):
                if waiting:
                    return waiting.popleft()
            return self._frames.pop(next(iter(self._frames)))  # of the camera that has waited longest

    def take_frame(self, camera: str) -> Frame | None:
        """Take a camera's waiting frame out of turn."""
        with self._changed:
            return self._frames.pop(camera, None)

    def take_leaving(self, default_timeout_s: float) -> list[Ask]:
        """Take out the questions that were cancelled or are late; all of them when closed."""
        with self._changed:
            leaving = [ask for ask in self._asks
                       if not self.is_open or ask.is_cancelled or ask.is_late(default_timeout_s)]
            for ask in leaving:
                self._asks.remove(ask)
        return leaving

    def close(self) -> None:
        """Let `next` return None and take no more questions."""
        with self._changed:
            self.is_open = False
            self._changed.notify()
