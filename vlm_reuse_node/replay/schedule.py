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

"""When the questions of a questions file are due along a bag. Times are seconds from the bag's first picture."""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from vlm_reuse_node.replay.questions import OnChange, QuestionEntry
from vlm_reuse_node.scene.frame import Frame

GRID = 16, 12


@dataclass(frozen=True)
class DueQuestion:
    """An entry that is to be asked at a moment."""

    entry: QuestionEntry
    at_s: float


class Schedule:
    """When one camera's questions are due. Call `before` with each picture's time, then `at` with the picture.

    skipped: questions so far that were due while the newest picture was too old to be asked about.
    """

    def __init__(self, entries: tuple[QuestionEntry, ...], camera: str, max_age_s: float) -> None:
        """Start before the camera's first picture. max_age_s: a picture of this age is not asked about."""
        entries = tuple(entry for entry in entries if entry.camera in ('', camera))
        self._timed = tuple(entry for entry in entries if entry.on_change is None)
        self._triggers = [_ChangeTrigger(entry, entry.on_change) for entry in entries if entry.on_change]
        self._max_age_s = max_age_s
        self._newest_s: float | None = None
        self.skipped = 0

    def before(self, time_s: float) -> Iterator[DueQuestion]:
        """Yield those due since the picture before and before `time_s`, in order; they are about that picture."""
        begin_s, self._newest_s = self._newest_s, time_s
        if begin_s is None:
            return iter(())
        end_s = max(begin_s, min(time_s, begin_s + self._max_age_s))
        self.skipped += sum(entry.count(end_s, time_s) for entry in self._timed)
        due = [map(partial(DueQuestion, entry), entry.times(begin_s, end_s)) for entry in self._timed]
        return heapq.merge(*due, key=lambda question: question.at_s)

    def at(self, time_s: float, frame: Frame) -> list[DueQuestion]:
        """Return those due because of this picture."""
        if not self._triggers:
            return []
        grid = cv2.resize(frame.rgb, GRID, interpolation=cv2.INTER_AREA).astype(np.int16)
        return [DueQuestion(trigger.entry, time_s) for trigger in self._triggers if trigger.is_due(time_s, grid)]


class _ChangeTrigger:
    """Compares each picture with the one of the last asking, apart from the engine's own change detector.

    A picture is given as its grid: (12, 16, 3) int16, mean colours.
    """

    def __init__(self, entry: QuestionEntry, rule: OnChange) -> None:
        self.entry = entry
        self._rule = rule
        self._last: np.ndarray | None = None
        self._moved_s = -math.inf
        self._asked: np.ndarray | None = None
        self._asked_s = -math.inf

    def is_due(self, time_s: float, grid: np.ndarray) -> bool:
        """Whether to ask about this picture. To be called with every picture in turn."""
        last = self._last
        self._last = grid
        if not self.entry.from_s <= time_s < self.entry.to_s:
            return False
        if self._asked is None or last is None:  # changes count from the first picture
            self._asked = grid
            return False
        if self._share(last, grid) > 0:
            self._moved_s = time_s
        if (
            time_s - self._moved_s < self._rule.settle_s
            or time_s - self._asked_s < self._rule.pause_s
            or self._share(self._asked, grid) < self._rule.share
        ):
            return False
        self._asked = grid
        self._asked_s = time_s
        return True

    def _share(self, before: np.ndarray, after: np.ndarray) -> float:
        """Share of the grid's cells that differ by the threshold or more."""
        return float((abs(before - after).max(axis=2) >= self._rule.threshold).mean())
