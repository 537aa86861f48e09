"""What waits for the model: resets, questions, and the newest frame of each camera. Thread-safe.

Memory does not grow with the frame rate: a camera's older waiting frame is replaced. Planners' questions go first, then
standing ones, then frames; each in turn between cameras, and none is passed over for ever.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from numbers import Real

from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.progress import Progress
from vlm_reuse_node.session.question import Question

# Whoever was passed over so often goes first, whatever his rank.
MOST_PASSED_OVER = 8


@dataclass(frozen=True, eq=False)
class Ask:
    """A question that waits. Its future stays pending until the answer, so that it can be cancelled at any time.

    now_ns: the node clock at the asking. cold: answer from nothing. event: set to cancel. listener: told of progress,
    on the model's thread. asked_s: the steady clock. is_standing: no planner waits for it.
    """

    camera: str
    question: Question
    now_ns: int
    cold: bool = False
    event: threading.Event | None = None
    listener: Callable[[Progress], None] | None = None
    future: Future[Answer] = field(default_factory=Future)
    asked_s: float = field(default_factory=time.perf_counter)
    is_standing: bool = False

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self.future.cancelled() or (self.event is not None and self.event.is_set())

    def is_late(self, default_timeout_s: float) -> bool:
        """Whether its time has passed; an invalid timeout is left to the session."""
        timeout_s = self.question.timeout_s or default_timeout_s
        return isinstance(timeout_s, Real) and 0 < timeout_s <= time.perf_counter() - self.asked_s


@dataclass(frozen=True)
class Reset:
    """A camera whose state is to be forgotten."""

    camera: str


class _Turns:
    """Questions of several cameras: each camera's in order, the cameras in turn."""

    def __init__(self):
        self._queues: dict[str, deque[Ask]] = {}  # the camera whose turn is next comes first

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def counts(self) -> dict[str, int]:
        return {camera: len(queue) for camera, queue in self._queues.items()}

    def put(self, ask: Ask) -> None:
        self._queues.setdefault(ask.camera, deque()).append(ask)

    def take(self) -> Ask:
        camera = next(iter(self._queues))
        queue = self._queues.pop(camera)
        ask = queue.popleft()
        if queue:
            self._queues[camera] = queue
        return ask

    def take_where(self, leaves: Callable[[Ask], bool]) -> list[Ask]:
        leaving = [ask for queue in self._queues.values() for ask in queue if leaves(ask)]
        gone = set(map(id, leaving))
        self._queues = {
            camera: deque(kept)
            for camera, queue in self._queues.items()
            if (kept := [ask for ask in queue if id(ask) not in gone])
        }
        return leaving


class Inbox:
    """Filled by any thread, emptied by the model's."""

    def __init__(self):
        """Start open and empty."""
        self._changed = threading.Condition()
        self._resets: deque[Reset] = deque()
        self._asks, self._standing = _Turns(), _Turns()
        self._frames: dict[str, Frame] = {}  # the camera that has waited longest comes first
        self._passed_over: Counter[int] = Counter()  # by rank: asks, standing, frames
        self.is_open = True

    def __len__(self) -> int:
        """Questions that wait."""
        return len(self._asks) + len(self._standing)

    def waiting(self) -> dict[str, int]:
        """Planners' questions that wait, by camera."""
        with self._changed:
            return self._asks.counts()

    def put_frame(self, frame: Frame) -> bool:
        """Leave the newest frame of a camera. Returns False when it replaced one that waited."""
        with self._changed:
            replaced = frame.camera in self._frames
            self._frames[frame.camera] = frame
            self._changed.notify()
        return not replaced

    def put_ask(self, ask: Ask, limit: int) -> bool:
        """Leave a planner's question. Returns False when closed or `limit` about its camera wait already."""
        with self._changed:
            if not self.is_open or self._asks.counts().get(ask.camera, 0) >= limit:
                return False
            self._asks.put(ask)
            self._changed.notify()
        return True

    def put_standing(self, ask: Ask) -> bool:
        """Leave a standing question, however many wait. Returns False when closed."""
        with self._changed:
            if not self.is_open:
                return False
            self._standing.put(ask)
            self._changed.notify()
        return True

    def put_reset(self, camera: str) -> None:
        """Have a camera forgotten, its waiting frame at once."""
        with self._changed:
            self._frames.pop(camera, None)
            self._resets.append(Reset(camera))
            self._changed.notify()

    def next(self, wait_s: float | None = None) -> Reset | Ask | Frame | None:
        """Wait for the next thing to do. None when closed.

        wait_s: gives None after so many seconds with nothing to do; None waits for ever.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._resets or len(self) or self._frames or not self.is_open, wait_s)
            if not self.is_open:
                return None
            return self._resets.popleft() if self._resets else self._next_by_rank()

    def take_frame(self, camera: str) -> Frame | None:
        """Take a camera's waiting frame out of turn."""
        with self._changed:
            return self._frames.pop(camera, None)

    def take_leaving(self, default_timeout_s: float) -> list[Ask]:
        """Take out the questions that were cancelled or are late; all of them when closed."""

        def leaves(ask):
            return not self.is_open or ask.is_cancelled or ask.is_late(default_timeout_s)

        with self._changed:
            return [*self._asks.take_where(leaves), *self._standing.take_where(leaves)]

    def close(self) -> None:
        """Let `next` return None and take no more questions."""
        with self._changed:
            self.is_open = False
            self._changed.notify()

    def _next_by_rank(self):
        lanes = self._asks, self._standing, self._frames
        waiting = [rank for rank, lane in enumerate(lanes) if lane]
        if not waiting:
            return None
        first = next((rank for rank in waiting if self._passed_over[rank] >= MOST_PASSED_OVER), waiting[0])
        self._passed_over = Counter({rank: self._passed_over[rank] + 1 for rank in waiting if rank != first})
        lane = lanes[first]
        return lane.pop(next(iter(lane))) if lane is self._frames else lane.take()
