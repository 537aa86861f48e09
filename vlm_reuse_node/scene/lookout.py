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

"""Looks at every picture of one camera, and knows which cells of the model's state differ from the newest one.

A look takes milliseconds of a CPU and no model, so it can be done while the model is busy. Thread-safe: pictures are
looked at on one thread while the model computes on another.
"""

import time
from collections import deque
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.change import Change, ChangeDetector, SceneChange, Seen
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh, Totals

# A stamp that is older than the newest picture's by more than this comes from a clock that was set back, or from a
# recording that starts again. A smaller step back is jitter: the picture is only older than the newest one.
RESTARTED_NS = 1_000_000_000
# Pictures whose times are kept, to tell which of them a waiting question could know of.
REMEMBERED = 256


@dataclass(frozen=True, eq=False)
class Look:
    """What is known about the newest picture.

    change: how it differs from the pixels that the state was computed from; None while there is no such state.
    lost: why there is no such state; '' when there is one. is_restart: whether older pictures are void too, because the
    size changed or time went back.
    current: the newest picture that the state agrees with; None while there is no such state.
    stale_ns: when the picture after that one was taken; None when there is none, or it is not known.
    period_s: seconds since the picture before; 0 for the first. change_ms: time of the comparison.
    """

    camera: str
    frame: Frame
    change: Change | None
    lost: str
    is_restart: bool
    current: Frame | None
    stale_ns: int | None
    computed_ns: np.ndarray
    detector: ChangeDetector
    seen: Seen
    period_s: float
    change_ms: float

    @property
    def cells(self) -> int:
        """Visual tokens of the picture."""
        return self.computed_ns.size

    @property
    def stale(self) -> np.ndarray:
        """The cells of the state that differ from the picture, (rows, columns) bool; without a state, all cells."""
        return self.change.stale if self.change else np.ones(self.computed_ns.shape, bool)

    @property
    def is_current(self) -> bool:
        """Whether the state agrees with the picture."""
        return self.change is not None and not self.change.stale.any()

    @property
    def was_cut(self) -> bool:
        """Whether the picture shows another scene than the state."""
        return self.change is not None and self.change.scene == SceneChange.CUT

    def agreed(self, now_ns: int) -> bool:
        """Whether the state agrees with the newest of the pictures that had been taken at `now_ns`."""
        return self.is_current or (self.stale_ns is not None and self.stale_ns > now_ns)

    @property
    def lag_s(self) -> float:
        """How long stale cells have been known to differ from the newest picture, seconds; 0 without one."""
        return self.change.lag_s if self.change else 0.0

    def record(self, totals: Totals) -> Refresh:
        """The record of this look, which computed nothing."""
        stale, nothing = self.stale, np.zeros(self.computed_ns.shape, bool)
        if self.change is None:
            return self.refreshed(self, totals, Level.REUSE, f'not computed yet: {self.lost}', nothing, stale)
        deferred, count = self.detector.deferred, int(stale.sum())
        reason = f'{count} of {stale.size} cells are stale' if count else 'no cell changed'
        if deferred.any():
            reason += ', over budget'
        return self.refreshed(self, totals, Level.REUSE, reason, nothing, stale & ~deferred, change_ms=self.change_ms)

    def refreshed(
        self,
        now: 'Look',
        totals: Totals,
        level: Level,
        reason: str,
        refreshed: np.ndarray,
        changed: np.ndarray,
        **more: Any,
    ) -> Refresh:
        """The record of a refresh to this picture.

        now: the look at the newest picture after that. more: other fields of `Refresh`, by name.
        """
        return Refresh(
            self.camera,
            self.frame.stamp_ns,
            self.frame.frame_id,
            level,
            reason,
            refreshed=refreshed,
            stale=now.stale if now.stale.shape == refreshed.shape else ~refreshed,
            changed=changed,
            oldest_cell_age_s=float(self.frame.stamp_ns - now.computed_ns.min()) / 1e9 if now.change else 0.0,
            lag_s=now.lag_s,
            totals=totals,
            **more,
        )


class Lookout:
    """Owns one camera's change detector and newest picture.

    newest: the look at the newest picture; None before the first.
    """

    def __init__(self, camera: str = 'camera') -> None:
        """Start without a picture."""
        self._camera = camera
        self._lock = Lock()
        self.newest: Look | None = None
        self._taken: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)  # stamps of the last pictures, and when taken
        self._lost = 'first frame'
        self._is_restart = False

    def can_look(self, frame: Frame) -> bool:
        """Whether the grid of such a picture is known, so that `look` may be called without it."""
        newest = self.newest
        return newest is not None and newest.frame.size == frame.size

    def look(self, frame: Frame, config: Config, grid: tuple[int, int] = (0, 0), cell_px: int = 0) -> Look | None:
        """Compare a picture with the state. Returns None for one that is a little older than the newest.

        grid: its (rows, columns); cell_px: pixels of a cell's side as the model sees it. Only needed when `can_look` is
        False.
        """
        started_s = time.perf_counter()
        with self._lock:
            before = self.newest
            restarts = ''
            if before and frame.size != before.frame.size:
                restarts = f'size changed from {before.frame.size} to {frame.size}'
            elif before and frame.stamp_ns < before.frame.stamp_ns - RESTARTED_NS:
                restarts, grid, cell_px = 'time went back', before.computed_ns.shape, before.detector.cell_px
            elif before and frame.stamp_ns < before.frame.stamp_ns:
                return None
            if restarts and not grid[0]:
                return None  # a picture of another size was looked at since `can_look`
            if before and not restarts:
                change = before.detector.compare(frame.rgb, frame.stamp_ns, config)
                detector, computed_ns, current = before.detector, before.computed_ns, before.current
            else:
                detector, change, current = ChangeDetector(frame.rgb, frame.stamp_ns, *grid, cell_px), None, None
                computed_ns = np.full(grid, frame.stamp_ns, np.int64)
                self._taken.clear()
                if before:
                    self._lost, self._is_restart = restarts, True
            self._keep(frame, change, current, computed_ns, detector, started_s)
            return self.newest

    def settle(self, look: Look, refreshed: np.ndarray, deferred: np.ndarray, config: Config) -> np.ndarray:
        """Note that the model has computed some cells of the picture of `look`, and which stale cells it has deferred.

        refreshed, deferred: (rows, columns) bool. When the state was lost, refreshed are all cells. Returns the cells
        to report as changed. The newest picture, which may be a newer one, is compared again.
        """
        started_s = time.perf_counter()
        with self._lock:
            newest = self.newest
            if newest is None or newest.detector is not look.detector:
                return refreshed  # pictures of another size or time came meanwhile
            changed = newest.detector.settle(refreshed, deferred, look.stale, config, look.seen)
            if look.change is None:
                changed = refreshed
            if refreshed.all():
                self._lost, self._is_restart = '', False
            computed_ns = np.where(refreshed, look.frame.stamp_ns, newest.computed_ns)
            change = newest.detector.compare_again(config)
            current = newest.current if deferred.any() else look.frame
            self._keep(newest.frame, change, current, computed_ns, newest.detector, started_s)
            return changed

    def lose(self, why: str) -> None:
        """Note that the live picture's state is gone: every cell is stale."""
        with self._lock:
            self._lost = why
            if newest := self.newest:
                self._keep(newest.frame, None, None, newest.computed_ns, newest.detector, None)

    def reset(self) -> None:
        """Forget the pictures."""
        with self._lock:
            self.newest, self._lost, self._is_restart = None, 'first frame', False
            self._taken.clear()

    def _keep(
        self,
        frame: Frame,
        change: Change | None,
        current: Frame | None,
        computed_ns: np.ndarray,
        detector: ChangeDetector,
        started_s: float | None,
    ) -> None:
        if self._lost:
            change = None
        if change is not None and not change.stale.any():
            current = frame
        current = current if change else None
        if not self._taken or self._taken[-1][0] != frame.stamp_ns:
            self._taken.append((frame.stamp_ns, frame.taken_ns))
        change_ms = 1e3 * (time.perf_counter() - started_s) if started_s is not None else 0.0
        before, period_s = self.newest, 0.0
        if before and before.detector is detector:
            is_same = before.frame is frame
            period_s = before.period_s if is_same else (frame.stamp_ns - before.frame.stamp_ns) / 1e9
        self.newest = Look(
            self._camera,
            frame,
            change,
            self._lost,
            self._is_restart,
            current,
            self._first_after(current),
            computed_ns,
            detector,
            detector.seen,
            period_s,
            change_ms,
        )

    def _first_after(self, current: Frame | None) -> int | None:
        """When the first picture after this one was taken, nanoseconds; None when there is none, or it is not known."""
        if current is None or self._taken[0][0] > current.stamp_ns:
            return None
        # The smallest: after a step back of the node's clock, newer pictures were taken at earlier times.
        return min((taken_ns for stamp_ns, taken_ns in self._taken if stamp_ns > current.stamp_ns), default=None)
