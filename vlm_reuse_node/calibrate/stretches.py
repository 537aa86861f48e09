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

"""Cuts recordings into stretches: the limits are chosen on every other one, and judged on the rest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlm_reuse_node.replay.bag import Bag, Selection
from vlm_reuse_node.replay.questions import QuestionEntry
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.turn import Halt

# A recording has about so many stretches, each of so many seconds at least and at most: long enough for several
# patches in a row, short enough that both halves see all of the scene.
STRETCHES, SHORTEST_S, LONGEST_S = 10, 5.0, 60.0


@dataclass(frozen=True)
class Recording:
    """One recording, its cameras, and what is asked. are_general: whether nobody wrote these questions for it."""

    path: Path
    name: str
    selection: Selection
    cameras: tuple[str, ...]
    questions: tuple[QuestionEntry, ...]
    are_general: bool


@dataclass(frozen=True)
class Moment:
    """One picture. is_first: of its camera in a stretch. is_asked: whether questions are asked about it."""

    frame: Frame
    is_first: bool
    is_asked: bool


def spread(recording: Recording, count: int, camera: str) -> list[Frame]:
    """Return so many pictures of a camera, spread over the stretches to choose the limits on. Raises BagError."""
    bag = Bag(recording.path, recording.selection)
    try:
        chosen: list[Frame] = []
        for frame in bag.frames():
            is_fitted = int(bag.at_s(frame) // stretch_s(bag.seconds)) % 2 == 0
            if frame.camera == camera and is_fitted and bag.at_s(frame) >= len(chosen) * bag.seconds / count:
                chosen.append(frame)
            if len(chosen) == count:
                break
        return chosen
    finally:
        bag.close()


def stretch_s(seconds: float) -> float:
    """Length of the stretches of a recording."""
    return min(LONGEST_S, max(SHORTEST_S, seconds / STRETCHES))


def moments(
    recording: Recording, fitted: bool, every_s: float, progress: Callable[[float], None], stopped: Callable[[], bool]
) -> Iterator[Moment]:
    """Yield the pictures of every other stretch: of those to choose the limits on, or of those to judge them on.

    every_s: time between the pictures that are asked about. progress: called with the seconds that were read since its
    last call. Raises BagError, and Halt when `stopped`.
    """
    bag = Bag(recording.path, recording.selection)
    length_s, done_s = stretch_s(bag.seconds), 0.0
    stretch_of: dict[str, int] = {}
    due_s: dict[str, float] = {}
    try:
        for frame in bag.frames():
            if stopped():
                raise Halt(Status.CANCELLED, 'The calibration was stopped.')
            at_s, camera = bag.at_s(frame), frame.camera
            progress(max(0.0, at_s - done_s))
            done_s = max(done_s, at_s)
            number = int(at_s // length_s)
            if (number % 2 == 0) != fitted:
                continue
            is_first = stretch_of.get(camera) != number
            stretch_of[camera] = number
            is_asked = is_first or at_s >= due_s[camera]
            if is_asked:
                due_s[camera] = at_s + every_s
            yield Moment(frame, is_first, is_asked)
    finally:
        bag.close()
