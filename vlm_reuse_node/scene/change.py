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

"""Finds the cells of a frame that differ from the pixels their cached state was computed from. NumPy and OpenCV only.

Like the planner of arXiv 2605.03351 (section 1) it has two thresholds, with doubt between them. That paper compares the
largest difference of a cell with that of the previous frame. This detector compares with the cached pixels, so a slow
change adds up and is found; and it counts the values that differ, because the largest of them is mostly noise.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.cell_differences import CellDifferences, Thresholds, cell_differences, largest_of_blocks
from vlm_reuse_node.scene.cells import grown
from vlm_reuse_node.scene.exposure import exposure_gain
from vlm_reuse_node.scene.pan import is_panned
from vlm_reuse_node.scene.scaled_frame import ScaledFrame
from vlm_reuse_node.scene.sensor_noise import SensorNoise

# Noise explains a difference up to this many of its standard deviations. One value in a hundred of normal noise is
# beyond 2.6. The rest is for places that are noisier than those that the noise is learnt from, such as edges in a JPEG
# picture. The mean of a block has a third of the noise of its pixels at most.
NOISE_REACH, BLOCK_REACH = 4.5, 1.5
# Noise raises a threshold to at most this many times change_threshold.
MOST_RAISED = 2
# The detector checks for a pan when at least this share of the cells changed.
PAN_SHARE = 0.1
# The scene was cut when at least this share of the cells changed and the camera did not pan.
CUT_SHARE = 0.6


class SceneChange(StrEnum):
    """What happened to the frame as a whole."""

    SAME = 'same'
    PAN = 'pan'
    CUT = 'cut'


@dataclass(frozen=True, eq=False)
class Change:
    """How a frame differs from the cached pixels. Every array is (rows, columns).

    difference: uint8, the largest absolute difference of the mean of a block of a cell, in any channel, 0 to 255; with
    the exposure compensated where that makes it smaller.
    changed: bool, the cells that differ by change_threshold.
    stale: bool, the cells to refresh: changed, near a changed cell (change_halo), deferred before, or in doubt for
    longer than max_cell_age_s. After a pan or a cut all cells are stale.
    doubt_s: float64, seconds since a frame last showed the cell unchanged.
    still_s: seconds since the scene last changed, compared with the frame of the change before.
    """

    difference: np.ndarray
    changed: np.ndarray
    stale: np.ndarray
    doubt_s: np.ndarray
    scene: SceneChange
    still_s: float = 0.0

    @property
    def lag_s(self) -> float:
        """How long the stale cells have been known to differ from the frame, seconds; 0 without one."""
        return float(self.doubt_s[self.stale].max(initial=0))


@dataclass(frozen=True, eq=False)
class Seen:
    """A compared frame, kept until its pixels can become the cached ones.

    gain: the exposure of the frame over the cached pixels.
    """

    frame: ScaledFrame
    stamp_ns: int
    gain: float = 1.0


class ChangeDetector:
    """Compares one camera's frames of one size with the cached pixels of every cell, at the model's resolution.

    A cell differs by a threshold when enough of its values do, or the mean of one of its blocks (see
    cell_differences.py). It is changed when it differs by change_threshold, and stays changed until it is refreshed or
    static. It is static when it does not even differ by static_threshold. Between the two it is in doubt, and after
    max_cell_age_s it is overdue.

    The noise of the sensor raises both thresholds, the lower one to change_threshold at most.

    When the exposure of the whole frame changes by a factor within 1 + exposure_compensation, no cell is changed, but
    all cells are in doubt. If the new exposure lasts, they are refreshed when they are overdue. Until then the state is
    exact for the cached frame, which is darker or brighter than the newest one.

    seen: the last compared frame. deferred: the deferred cells that were not refreshed since, (rows, columns) bool.
    """

    def __init__(self, rgb: np.ndarray, stamp_ns: int, rows: int, columns: int, cell_px: int) -> None:
        """Keep the (height, width, 3) uint8 frame whose state is cached. Its grid has rows x columns cells."""
        self._grid, self.cell_px = (rows, columns), cell_px
        self.seen = Seen(self._scaled(rgb), stamp_ns)
        self._cached = self.seen.frame
        # The frame that last differed from the one kept here before it, and its stamp: how long the scene rests.
        self._anchor, self._moved_ns = self.seen.frame, stamp_ns
        # The pixels of each cell when it was last reported as changed.
        self._reported = self._cached.copy()
        # Cells whose cached pixels differ from the reported ones by less than a change, and the stamp since when.
        self._differs_slightly, self._differs_since_ns = np.zeros(self._grid, bool), np.zeros(self._grid, np.int64)
        self._unchanged_ns = np.full(self._grid, stamp_ns, np.int64)  # the last frame that showed the cell unchanged
        self._changed, self.deferred = np.zeros(self._grid, bool), np.zeros(self._grid, bool)
        self._exposures = np.ones(self._grid)  # cached pixels are brought to one common exposure: each cell's factor
        self._sensor = SensorNoise(rgb.shape[:2], self.seen.frame)
        self._noise = self._sensor.of_cells(self.seen.frame)  # of the last compared frame

    def compare(self, rgb: np.ndarray, stamp_ns: int, config: Config) -> Change:
        """Compare a frame of the same size with the cached pixels. Thresholds and age limit come from config."""
        frame, previous = self._scaled(rgb), self.seen
        self.seen = Seen(frame, stamp_ns, exposure_gain(frame, self._cached, config.exposure_compensation))
        # Two frames teach nothing but noise, so what is new in this one does not raise the threshold that must find it.
        if stamp_ns > previous.stamp_ns:
            self._sensor.learn(frame, previous.frame, (stamp_ns - previous.stamp_ns) / 1e9)
        self._noise = self._sensor.of_cells(frame)
        self._find_changed(config)
        self._find_rest(config)
        return self._change(config)

    def compare_again(self, config: Config) -> Change:
        """Compare the last compared frame with the cached pixels once more, after a refresh from an older frame."""
        gain = exposure_gain(self.seen.frame, self._cached, config.exposure_compensation)
        self.seen = Seen(self.seen.frame, self.seen.stamp_ns, gain)
        self._find_changed(config)
        return self._change(config)

    def refresh(self, cells: np.ndarray | None = None, seen: Seen | None = None) -> None:
        """Make a compared frame the cached pixels of these cells, (rows, columns) bool. None: of all cells.

        seen: the frame; None: the last compared one.
        """
        seen = seen or self.seen
        if cells is None or cells.all():
            self._cached, self._exposures = seen.frame, np.ones(self._grid)
            cells = np.ones(self._grid, bool)
        else:
            frame = seen.frame if seen.gain == 1 else seen.frame.exposed(1 / seen.gain)
            self._cached = self._cached.with_cells(frame, cells)
            self._exposures = np.where(cells, seen.gain, self._exposures)
        self._changed, self.deferred = self._changed & ~cells, self.deferred & ~cells
        self._unchanged_ns[cells] = seen.stamp_ns

    def report_changed(self, refreshed: np.ndarray, config: Config, seen: Seen | None = None) -> np.ndarray:
        """Return the cells whose cached pixels differ from those last reported here; they count as reported then.

        Every refresh of the whole frame replaces the cached pixels, so a slow change is never found against them. It
        adds up against the reported pixels, which stay. A smaller difference is reported when it lasts max_cell_age_s.
        refreshed: the stale cells that the last `refresh` was for; none when there was no refresh. seen: its frame;
        None: the last compared one. All arrays are (rows, columns) bool.
        """
        changed, seen = refreshed.copy(), seen or self.seen
        if self._cached is seen.frame and not changed.all():  # all cells were refreshed, some without being stale
            gain = exposure_gain(self._cached, self._reported, config.exposure_compensation)
            differences = self._differences(self._cached, self._reported, gain, config)
            changed |= np.all([by_gain.differs_much for by_gain in differences], axis=0)
            differs_slightly = np.any([by_gain.differs for by_gain in differences], axis=0)
            self._differs_since_ns[differs_slightly & ~self._differs_slightly] = seen.stamp_ns
            self._differs_slightly = differs_slightly
        changed |= self._differs_slightly & (seen.stamp_ns - self._differs_since_ns > 1e9 * config.max_cell_age_s)
        if changed.any():
            self._reported = self._reported.with_cells(self._cached, changed)
            self._differs_slightly &= ~changed
        return changed

    def settle(
        self,
        refreshed: np.ndarray,
        deferred: np.ndarray,
        stale: np.ndarray,
        config: Config,
        seen: Seen | None = None,
    ) -> np.ndarray:
        """Record the refresh of a compared frame: `refresh`, `report_changed` and `defer` in one call.

        refreshed, deferred, stale: (rows, columns) bool; stale as `compare` returned it. seen: the frame; None: the
        last compared one. Returns the cells to report as changed.
        """
        if refreshed.any():
            self.refresh(refreshed, seen)
        changed = self.report_changed(refreshed & stale, config, seen)
        self.defer(deferred)
        return changed

    def defer(self, cells: np.ndarray) -> None:
        """Keep these cells, (rows, columns) bool, stale until they are refreshed, even if they change back."""
        self.deferred = cells

    def doubt_s(self, stamp_ns: int) -> np.ndarray:
        """Seconds from the last frame that showed each cell unchanged to `stamp_ns`: (rows, columns) float64."""
        return (stamp_ns - self._unchanged_ns) / 1e9

    def _find_changed(self, config: Config) -> None:
        """Find the changed and the static cells of the last compared frame, without and with its exposure."""
        differences = self._differences(self.seen.frame, self._cached, self.seen.gain, config)
        static = self._static(differences, config)
        changed = np.all([by_gain.differs_much for by_gain in differences], axis=0)
        self._changed = changed | (self._changed & ~static)
        self._unchanged_ns[static & ~self.deferred] = self.seen.stamp_ns
        self._difference = np.min([by_gain.largest for by_gain in differences], axis=0)

    def _find_rest(self, config: Config) -> None:
        """Note whether the scene has changed since the anchor. The means of blocks show that well enough."""
        frame, anchor = self.seen.frame, self._anchor
        gain = exposure_gain(frame, anchor, config.exposure_compensation)
        if (largest_of_blocks(frame, anchor, gain) >= self._thresholds(config)[1].blocks).any():
            self._anchor, self._moved_ns = frame, self.seen.stamp_ns

    def _change(self, config: Config) -> Change:
        """Mark the cells to refresh."""
        scene, doubt_s = self._scene(), self.doubt_s(self.seen.stamp_ns)
        overdue = doubt_s > config.max_cell_age_s
        stale = grown(self._changed, config.change_halo) | self.deferred | overdue | (scene != SceneChange.SAME)
        still_s = (self.seen.stamp_ns - self._moved_ns) / 1e9
        return Change(self._difference, self._changed, stale, doubt_s, scene, still_s)

    def _scaled(self, rgb: np.ndarray) -> ScaledFrame:
        return ScaledFrame.of(rgb, *self._grid, self.cell_px)

    def _differences(self, now: ScaledFrame, then: ScaledFrame, gain: float, config: Config) -> list[CellDifferences]:
        """Compare two frames as they are, and with the exposure taken out if it differs."""
        low, high = self._thresholds(config)
        return [cell_differences(now, then, each, low, high) for each in {1.0, gain}]

    def _thresholds(self, config: Config) -> tuple[Thresholds, Thresholds]:
        """The lower and the higher thresholds, raised where the noise is above them."""
        noise, change = self._noise, config.change_threshold
        low, high = (
            Thresholds(*(_raised(threshold, reach * noise, most) for reach in (NOISE_REACH, BLOCK_REACH)))
            for threshold, most in ((config.static_threshold, change), (change, MOST_RAISED * change))
        )
        return low, high

    def _static(self, differences: list[CellDifferences], config: Config) -> np.ndarray:
        """Cells that are unchanged in content and in exposure.

        A cell that was cached at the common exposure must be unchanged both without and with compensation. For the
        others one of the two is enough, as long as the exposure they were cached at is nearly that of this frame.
        """
        unchanged = [~by_gain.differs for by_gain in differences]
        apart = 255 * np.abs(self.seen.gain / self._exposures - 1) >= config.static_threshold
        return np.where(self._exposures == 1, np.all(unchanged, axis=0), np.any(unchanged, axis=0) & ~apart)

    def _scene(self) -> SceneChange:
        share = self._changed.mean()
        if share >= PAN_SHARE and is_panned(self.seen.frame.small, self._cached.small):
            return SceneChange.PAN
        return SceneChange.CUT if share >= CUT_SHARE else SceneChange.SAME


def _raised(threshold: float, noise: np.ndarray, most: float) -> np.ndarray:
    """The threshold, or what the noise explains up to `most`, as the smallest uint8 difference that reaches it."""
    return np.minimum(np.ceil(np.clip(noise, threshold, most)), 255).astype(np.uint8)
