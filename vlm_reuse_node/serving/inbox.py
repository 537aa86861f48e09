"""What waits for the model: resets, questions, and the newest frame of each camera. Thread-safe.

Memory does not grow with the frame rate: a camera's older waiting frame is replaced. Planners' questions go first, then
standing ones, then frames; each in turn between cameras, and none is passed over for ever.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Sized
from dataclasses import dataclass

from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.serving.queued_question import QueuedQuestion

# A lane that was skipped this often is served next.
MOST_SKIPPED = 8


@dataclass(frozen=True)
class Reset:
    """A camera whose state is to be forgotten."""

    camera: str


class _CameraQueues:
    """Questions of several cameras: each camera's in order, the cameras in turn."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[QueuedQuestion]] = {}  # the camera whose turn is next comes first

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def counts(self) -> dict[str, int]:
        return {camera: len(queue) for camera, queue in self._queues.items()}

    def put(self, queued: QueuedQuestion) -> None:
        self._queues.setdefault(queued.camera, deque()).append(queued)

    def take(self) -> QueuedQuestion:
        camera = next(iter(self._queues))
        queue = self._queues.pop(camera)
        queued = queue.popleft()
        if queue:
            self._queues[camera] = queue
        return queued

    def take_where(self, leaves: Callable[[QueuedQuestion], bool]) -> list[QueuedQuestion]:
        leaving = [queued for queue in self._queues.values() for queued in queue if leaves(queued)]
        gone = set(map(id, leaving))
        self._queues = {
            camera: deque(kept)
            for camera, queue in self._queues.items()
            if (kept := [queued for queued in queue if id(queued) not in gone])
        }
        return leaving


class Inbox:
    """Filled by any thread, emptied by the model's."""

    def __init__(self) -> None:
        """Start open and empty."""
        self._changed = threading.Condition()
        self._resets: deque[Reset] = deque()
        self._questions, self._standing = _CameraQueues(), _CameraQueues()
        self._frames: dict[str, Frame] = {}  # the camera that has waited longest comes first
        self._skipped: Counter[int] = Counter()  # times, by lane: questions, standing ones, frames
        self.is_open = True

    def __len__(self) -> int:
        """Questions that wait."""
        return len(self._questions) + len(self._standing)

    def waiting(self) -> dict[str, int]:
        """Planners' questions that wait, by camera."""
        with self._changed:
            return self._questions.counts()

    def put_frame(self, frame: Frame) -> bool:
        """Leave the newest frame of a camera. Returns False when it replaced one that waited."""
        with self._changed:
            replaced = frame.camera in self._frames
            self._frames[frame.camera] = frame
            self._changed.notify()
        return not replaced

    def put_question(self, queued: QueuedQuestion, limit: int) -> bool:
        """Leave a planner's question. Returns False when closed or `limit` about its camera wait already."""
        with self._changed:
            if not self.is_open or self._questions.counts().get(queued.camera, 0) >= limit:
                return False
            self._questions.put(queued)
            self._changed.notify()
        return True

    def put_standing(self, queued: QueuedQuestion) -> bool:
        """Leave a standing question, however many wait. Returns False when closed."""
        with self._changed:
            if not self.is_open:
                return False
            self._standing.put(queued)
            self._changed.notify()
        return True

    def put_reset(self, camera: str) -> None:
        """Have a camera forgotten, its waiting frame at once."""
        with self._changed:
            self._frames.pop(camera, None)
            self._resets.append(Reset(camera))
            self._changed.notify()

    def next(self, wait_s: float | None = None) -> Reset | QueuedQuestion | Frame | None:
        """Wait for the next thing to do. None when closed.

        wait_s: gives None after so many seconds with nothing to do; None waits for ever.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._resets or len(self) or self._frames or not self.is_open, wait_s)
            if not self.is_open:
                return None
            return self._resets.popleft() if self._resets else self._next_by_lane()

    def take_frame(self, camera: str) -> Frame | None:
        """Take a camera's waiting frame out of turn."""
        with self._changed:
            return self._frames.pop(camera, None)

    def take_leaving(self, default_timeout_s: float) -> list[QueuedQuestion]:
        """Take out the questions that were cancelled or are late; all of them when closed."""

        def leaves(queued: QueuedQuestion) -> bool:
            return not self.is_open or queued.is_cancelled or queued.is_late(default_timeout_s)

        with self._changed:
            return [*self._questions.take_where(leaves), *self._standing.take_where(leaves)]

    def close(self) -> None:
        """Let `next` return None and take no more questions."""
        with self._changed:
            self.is_open = False
            self._changed.notify()

    def _next_by_lane(self) -> QueuedQuestion | Frame | None:
        """From the first lane that is not empty, unless another was skipped often enough."""
        lanes: tuple[tuple[Sized, Callable[[], QueuedQuestion | Frame]], ...] = (
            (self._questions, self._questions.take),
            (self._standing, self._standing.take),
            (self._frames, self._take_oldest_frame),
        )
        takes = {lane: take for lane, (queue, take) in enumerate(lanes) if queue}
        if not takes:
            return None
        first = next((lane for lane in takes if self._skipped[lane] >= MOST_SKIPPED), min(takes))
        self._skipped = Counter({lane: self._skipped[lane] + 1 for lane in takes if lane != first})
        return takes[first]()

    def _take_oldest_frame(self) -> Frame:
        return self._frames.pop(next(iter(self._frames)))
