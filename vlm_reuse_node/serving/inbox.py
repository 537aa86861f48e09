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

"""The queue of work: the newest frame of each camera for the looks, resets and questions for the model. Thread-safe.

A new frame replaces the waiting frame of its camera, so memory does not grow with the frame rate. The model has three
lanes, in this order: planners' questions, standing questions, and frames that cannot be looked at without the model. In
each lane the cameras take turns. A lane that was skipped MOST_SKIPPED times is served next, so no lane starves.

Only one thread at a time looks at a camera's frame or resets the camera. So a question finds every frame that came
before it looked at, and no frame that came before a reset is looked at after it.
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
    """A request to forget a camera's state. is_removed: its session too, with all that it has counted."""

    camera: str
    is_removed: bool = False


class _CameraQueues:
    """Questions about several cameras. Each camera's questions stay in order, and the cameras take turns."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[QueuedQuestion]] = {}  # the camera that is served next comes first

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

    def take_next(self, camera: str, most: int, matches: Callable[[QueuedQuestion], bool]) -> list[QueuedQuestion]:
        queue = self._queues.get(camera, deque())
        taken: list[QueuedQuestion] = []
        while queue and len(taken) < most and matches(queue[0]):
            taken.append(queue.popleft())
        if not queue:
            self._queues.pop(camera, None)
        return taken

    def take_where(self, matches: Callable[[QueuedQuestion], bool]) -> list[QueuedQuestion]:
        taken = [queued for queue in self._queues.values() for queued in queue if matches(queued)]
        taken_ids = set(map(id, taken))
        self._queues = {
            camera: deque(kept)
            for camera, queue in self._queues.items()
            if (kept := [queued for queued in queue if id(queued) not in taken_ids])
        }
        return taken


class Inbox:
    """The queue of work. Any thread adds to it; the model's thread and the looks' thread take from it."""

    def __init__(self) -> None:
        """Start empty and open."""
        self._changed = threading.Condition()
        self._resets: deque[Reset] = deque()
        self._questions, self._standing = _CameraQueues(), _CameraQueues()
        self._frames: dict[str, Frame] = {}  # for the looks; the frame that has waited longest comes first
        self._first_frames: dict[str, Frame] = {}  # frames that need the model
        self._looked_at: str | None = None  # the camera whose frame the looks have taken
        self._held: str | None = None  # the camera whose frame or reset the model's thread has taken
        self._is_woken = False
        self._skipped: Counter[int] = Counter()  # skips of each lane: questions, standing questions, frames
        self.is_open = True

    def __len__(self) -> int:
        """Number of waiting questions, standing ones included."""
        return len(self._questions) + len(self._standing)

    def waiting(self) -> dict[str, int]:
        """Number of waiting planners' questions, by camera."""
        with self._changed:
            return self._questions.counts()

    def put_frame(self, frame: Frame) -> Frame | None:
        """Add the newest frame of a camera. Returns the waiting frame that it replaced."""
        with self._changed:
            first = self._first_frames.pop(frame.camera, None)
            replaced = self._frames.get(frame.camera, first)
            self._frames[frame.camera] = frame
            self._changed.notify_all()
        return replaced

    def put_first_frame(self, frame: Frame) -> bool:
        """Add a frame that cannot be looked at without the model. Returns False when a newer one has replaced it.

        A frame whose camera is to be reset is forgotten.
        """
        with self._changed:
            if frame.camera in self._frames:
                return False
            if not self._is_to_be_reset(frame.camera):
                self._first_frames[frame.camera] = frame
                self._changed.notify_all()
        return True

    def put_question(self, queued: QueuedQuestion, limit: int) -> bool:
        """Add a planner's question. Returns False when closed, or when `limit` questions about its camera wait."""
        with self._changed:
            if not self.is_open or self._questions.counts().get(queued.camera, 0) >= limit:
                return False
            self._questions.put(queued)
            self._changed.notify_all()
        return True

    def put_standing(self, queued: QueuedQuestion) -> bool:
        """Add a standing question; there is no limit. Returns False when closed."""
        with self._changed:
            if not self.is_open:
                return False
            self._standing.put(queued)
            self._changed.notify_all()
        return True

    def put_reset(self, camera: str, is_removed: bool = False) -> None:
        """Add a request to forget a camera's state (`Reset`). The camera's waiting frame is dropped at once."""
        with self._changed:
            self._drop_frames(camera)
            self._resets.append(Reset(camera, is_removed))
            self._changed.notify_all()

    def next(self, wait_s: float | None = None) -> Reset | QueuedQuestion | Frame | None:
        """Wait for the model's next item and take it. Returns None when closed, and after `wake`.

        Until `finish`, no frame of the camera of a reset or frame is handed to the looks.
        wait_s: return None when there is no item after this many seconds. None: wait without limit.
        """

        def is_ready() -> bool:
            return bool(self._resets or len(self) or self._first_frames or self._is_woken) or not self.is_open

        with self._changed:
            self._changed.wait_for(is_ready, wait_s)
            self._is_woken = False
            if not self.is_open:
                return None
            item = self._next_reset() if self._resets else self._next_by_lane()
            if isinstance(item, Reset | Frame):
                self._held = item.camera
            return item

    def finish(self) -> None:
        """Say that the model's thread has done with the reset or frame that it took last."""
        with self._changed:
            self._held = None
            self._changed.notify_all()

    def wake(self) -> None:
        """Let `next` return, because there may be upkeep to do."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def next_frame(self) -> Frame | None:
        """Wait for the next frame to look at and take it. The look at the last one has ended. None when closed."""
        with self._changed:
            self._looked_at = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._next_camera() or not self.is_open)
            if not self.is_open:
                return None
            self._looked_at = self._next_camera()
            return self._frames.pop(self._looked_at)

    def take_frame(self, camera: str) -> Frame | None:
        """Take a camera's waiting frame before its turn, for the model's thread. Call `finish` after the look at it.

        First waits until the look at an older frame has ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._looked_at != camera)
            self._held = camera
            return None if self._is_to_be_reset(camera) else self._drop_frames(camera)

    def take_companions(self, first: QueuedQuestion, most: int) -> list[QueuedQuestion]:
        """Take the questions of the same lane and camera that wait right behind this one and can be answered with it.

        They have choices, and so has the first; else none is taken. most: at most so many. The camera's turn is not
        changed, and no question overtakes another one of its camera.
        """

        def can_join(queued: QueuedQuestion) -> bool:
            return bool(queued.question.choices) and not queued.cold

        with self._changed:
            queues = self._standing if first.is_standing else self._questions
            return queues.take_next(first.camera, most, can_join) if can_join(first) else []

    def take_leaving(self, default_timeout_s: float) -> list[QueuedQuestion]:
        """Take all questions that were cancelled or timed out. When closed, take all questions."""

        def is_leaving(queued: QueuedQuestion) -> bool:
            return not self.is_open or queued.is_cancelled or queued.is_late(default_timeout_s)

        with self._changed:
            return [*self._questions.take_where(is_leaving), *self._standing.take_where(is_leaving)]

    def close(self) -> None:
        """Refuse new questions, and let `next` return None."""
        with self._changed:
            self.is_open = False
            self._changed.notify_all()

    def _next_camera(self) -> str | None:
        """The camera whose frame is looked at next; none of which the model's thread has an item."""
        ready = (camera for camera in self._frames if camera != self._held and not self._is_to_be_reset(camera))
        return next(ready, None)

    def _is_to_be_reset(self, camera: str) -> bool:
        return any(reset.camera == camera for reset in self._resets)

    def _next_reset(self) -> Reset:
        """Take the first reset, once the look at an older frame of its camera has ended."""
        self._changed.wait_for(lambda: self._looked_at != self._resets[0].camera)
        return self._resets.popleft()

    def _next_by_lane(self) -> QueuedQuestion | Frame | None:
        """Take from the first lane that is not empty, or from a lane that was skipped MOST_SKIPPED times."""
        lanes: tuple[tuple[Sized, Callable[[], QueuedQuestion | Frame]], ...] = (
            (self._questions, self._questions.take),
            (self._standing, self._standing.take),
            (self._first_frames, self._take_first_frame),
        )
        takes = {lane: take for lane, (queue, take) in enumerate(lanes) if queue}
        if not takes:
            return None
        first = next((lane for lane in takes if self._skipped[lane] >= MOST_SKIPPED), min(takes))
        self._skipped = Counter({lane: self._skipped[lane] + 1 for lane in takes if lane != first})
        return takes[first]()

    def _take_first_frame(self) -> Frame:
        return self._first_frames.pop(next(iter(self._first_frames)))

    def _drop_frames(self, camera: str) -> Frame | None:
        """Remove a camera's waiting frame, and return it. At most one waits."""
        first = self._first_frames.pop(camera, None)
        return self._frames.pop(camera, first)
