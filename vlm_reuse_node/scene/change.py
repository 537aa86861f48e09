"""Which cells of a picture changed against the pixels whose state is cached for them. NumPy and OpenCV only.

The statistic and the two thresholds are those of arXiv 2605.03351 (section 1 of its planner); unlike there, the
comparison is with the cached pixels, not the previous picture, so that slow drift adds up and is seen.
"""

from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.cells import grown
from vlm_reuse_node.scene.exposure import difference, exposure_gain
from vlm_reuse_node.scene.pan import is_panned
from vlm_reuse_node.scene.scaled_frame import ScaledFrame

STRIP_ROWS = 2
# A cell's noise is its largest difference that came twice from one picture to the next. It is forgotten by this factor
# a picture, and taken to reach this many times as far against the cached pixels.
NOISE_KEPT, NOISE_REACH = 0.98, 1.75
# Noise raises no threshold above this many times change_threshold: a camera that shakes must not go blind.
MOST_RAISED = 2
# A cell whose blocks differ by this share of change_threshold from one picture to the next has moved: that is no noise.
MOVED = 0.5
# A pan is looked for from this share of changed cells on.
PAN_SHARE = 0.1
# From this share of changed cells on, the scene was cut.
CUT_SHARE = 0.6


class SceneChange(StrEnum):
    """What happened to the picture as a whole."""

    SAME = 'same'
    PAN = 'pan'
    CUT = 'cut'


@dataclass(frozen=True, eq=False)
class Change:
    """What a picture shows against the cached pixels. Every array is (rows, columns).

    difference: uint8, the largest absolute difference of any pixel and channel of a cell, of 255, after a change of
    exposure was taken out where that explains it. changed: bool. stale: bool, the cells to refresh: changed, beside a
    changed one (change_halo), deferred before, in doubt for too long, or all of them when the scene is no longer the
    same.
    doubt_s: float64, seconds since a picture last showed the cell unchanged.
    """

    difference: np.ndarray
    changed: np.ndarray
    stale: np.ndarray
    doubt_s: np.ndarray
    scene: SceneChange


class ChangeDetector:
    """Compares one camera's pictures of one size with the cached pixels of every cell, at the model's resolution.

    A cell is changed when its difference reaches change_threshold, and stays changed until it is refreshed or
    static: below static_threshold. Between the two it is in doubt, and overdue after max_cell_age_s. Both thresholds
    are raised to what the camera's noise explains, the lower one up to change_threshold, so that what moves all the
    time and looks like noise is in doubt; the means of blocks, with little noise, are held to them as well.

    A change of exposure of the whole picture, by a factor within 1 + exposure_compensation, makes no cell changed, yet
    its cells are in doubt: a lasting one is refreshed when they are overdue. Until then the kept state is exact for the
    cached picture, which is darker or brighter than the newest one.
    """

    def __init__(self, rgb: np.ndarray, stamp_ns: int, rows: int, columns: int, cell_px: int):
        """Remember the (height, width, 3) uint8 picture whose state is cached, cut into rows x columns cells."""
        self._grid, self._cell_px = (rows, columns), cell_px
        self._cached = self._latest = self._scaled(rgb)
        self._stamp_ns = stamp_ns
        # What each cell showed when it was last told as changed; where it shows something a little different, and since
        # when it does.
        self._told = self._cached.copy()
        self._aside, self._aside_ns = np.zeros(self._grid, bool), np.zeros(self._grid, np.int64)
        self._known_ns = np.full(self._grid, stamp_ns, np.int64)
        self._changed, self._deferred = np.zeros(self._grid, bool), np.zeros(self._grid, bool)
        # What each cell's cached pixels were divided by to have all under one exposure; and the last picture's.
        self._exposures, self._gain = np.ones(self._grid), 1.0
        self._noise = np.zeros((2, *self._grid), np.float32)  # at each scale
        self._step = np.zeros((2, *self._grid), np.uint8)  # differences from the last picture but one to the last

    def compare(self, rgb: np.ndarray, stamp_ns: int, config: Config) -> Change:
        """What a picture of the same size, taken at `stamp_ns`, shows; thresholds and age limit from config."""
        # 1. The difference as it is, and with a change of exposure taken out.
        frame, previous = self._scaled(rgb), self._latest
        is_new = stamp_ns != self._stamp_ns
        self._gain = exposure_gain(frame, self._cached, config.exposure_compensation)
        found = self._differences(frame, self._cached, *{1.0, self._gain})
        # 2. Changed is what neither explains; static is what both find unchanged.
        noise = self._reach_of_noise(config)
        changed = np.all([_reaches(each, config.change_threshold, noise) for each in found], axis=0)
        static = self._static(found, config.static_threshold, np.minimum(noise, config.change_threshold))
        self._changed = changed | (self._changed & ~static)
        self._known_ns[static & ~self._deferred] = stamp_ns
        self._latest, self._stamp_ns = frame, stamp_ns
        # 3. How noisy the camera is; learnt last, so that what appears in this picture does not hide itself.
        if is_new:
            self._learn_noise(previous, config)
        # 4. What must be refreshed.
        scene, doubt_s = self._scene(), self.doubt_s(stamp_ns)
        overdue = doubt_s > config.max_cell_age_s
        stale = grown(self._changed, config.change_halo) | self._deferred | overdue | (scene != SceneChange.SAME)
        return Change(np.min([each.max(axis=0) for each in found], axis=0), self._changed, stale, doubt_s, scene)

    def refresh(self, cells: np.ndarray | None = None) -> None:
        """Take the picture compared last as the cached pixels of these cells, (rows, columns) bool; None: of all."""
        if cells is None or cells.all():
            self._cached, self._exposures = self._latest, np.ones(self._grid)
            cells = np.ones(self._grid, bool)
        else:
            latest = self._latest if self._gain == 1 else self._latest.exposed(1 / self._gain)
            self._cached = self._cached.with_cells(latest, cells)
            self._exposures = np.where(cells, self._gain, self._exposures)
        self._changed, self._deferred = self._changed & ~cells, self._deferred & ~cells
        self._known_ns[cells] = self._stamp_ns

    def news(self, refreshed: np.ndarray, config: Config) -> np.ndarray:
        """The cells whose cached pixels show something else than when they were last given here.

        Not only those that were found changed: what changes by less with each refresh of everything adds up, as against
        the cached pixels it cannot. refreshed: the stale cells that the last `refresh` was for; none when there was
        none. All (rows, columns) bool.
        """
        told = refreshed.copy()
        if self._cached is self._latest and not told.all():  # all cells were refreshed, not all because they are stale
            gain = exposure_gain(self._cached, self._told, config.exposure_compensation)
            found, noise = self._differences(self._cached, self._told, *{1.0, gain}), self._reach_of_noise(config)
            told |= np.all([_reaches(each, config.change_threshold, noise) for each in found], axis=0)
            least = np.minimum(noise, config.change_threshold)
            aside = np.any([_reaches(each, config.static_threshold, least) for each in found], axis=0)
            self._aside_ns[aside & ~self._aside] = self._stamp_ns
            self._aside = aside
        told |= self._aside & (self._stamp_ns - self._aside_ns > 1e9 * config.max_cell_age_s)
        if told.any():
            self._told = self._told.with_cells(self._cached, told)
            self._aside &= ~told
        return told

    def settle(
        self, refreshed: np.ndarray, deferred: np.ndarray, stale: np.ndarray, config: Config
    ) -> tuple[np.ndarray, float]:
        """Book what was done about the frame compared last: `refresh`, `news` and `defer`.

        refreshed, deferred, stale: (rows, columns) bool; stale as `compare` gave it. Returns the cells that show
        something new, and for how many seconds the deferred ones have been known to differ from that frame.
        """
        if refreshed.any():
            self.refresh(refreshed)
        changed = self.news(refreshed & stale, config)
        self.defer(deferred)
        return changed, float(self.doubt_s(self._stamp_ns)[deferred].max(initial=0))

    def defer(self, cells: np.ndarray) -> None:
        """Keep these cells, (rows, columns) bool, stale until they are refreshed, whatever they show until then."""
        self._deferred = cells

    @property
    def deferred(self) -> np.ndarray:
        """The cells that were deferred last and not refreshed since, (rows, columns) bool."""
        return self._deferred

    def doubt_s(self, stamp_ns: int) -> np.ndarray:
        """Seconds from the last picture that showed each cell unchanged to `stamp_ns`: (rows, columns) float64."""
        return (stamp_ns - self._known_ns) / 1e9

    def _scaled(self, rgb: np.ndarray) -> ScaledFrame:
        return ScaledFrame.of(rgb, *self._grid, self._cell_px)

    def _differences(self, now: ScaledFrame, then: ScaledFrame, *gains: float) -> np.ndarray:
        """Largest difference of any pixel and any block of each cell: (gains, 2, rows, columns) uint8."""
        return np.stack([self._largest(*pictures, gains) for pictures in zip(now.scales, then.scales)], axis=1)

    def _largest(self, now: np.ndarray, then: np.ndarray, gains: tuple[float, ...]) -> np.ndarray:
        """Largest difference in each cell at one scale, a few rows of cells at a time: those stay in the cache."""
        (rows, columns), height, parts = self._grid, len(now) // self._grid[0], []
        for row in range(0, rows, STRIP_ROWS):
            strip = slice(row * height, (row + STRIP_ROWS) * height)
            parts.append([_most(difference(now[strip], then[strip], gain), height, columns) for gain in gains])
        return np.concatenate(parts, axis=1)

    def _static(self, found: np.ndarray, threshold: float, noise: np.ndarray) -> np.ndarray:
        """Cells that differ neither in what they show nor, in the exposure they were cached under, visibly."""
        unchanged = [~_reaches(each, threshold, noise) for each in found]
        apart = 255 * np.abs(self._gain / self._exposures - 1) >= threshold
        return np.where(self._exposures == 1, np.all(unchanged, axis=0), np.any(unchanged, axis=0) & ~apart)

    def _reach_of_noise(self, config: Config) -> np.ndarray:
        """Difference that noise explains in each cell at each scale: (2, rows, columns)."""
        nearby = np.stack([cv2.dilate(noise, np.ones((3, 3), np.uint8)) for noise in self._noise])
        return np.minimum(NOISE_REACH * nearby, MOST_RAISED * config.change_threshold)

    def _learn_noise(self, previous: ScaledFrame, config: Config) -> None:
        """Compare with the previous picture, not the cached one: what drifts slowly is no noise.

        And noise comes again in the next picture; what appears once does not.
        """
        gain = exposure_gain(self._latest, previous, config.exposure_compensation)
        step = self._differences(self._latest, previous, gain)[0]
        moved = step[1] >= MOVED * config.change_threshold
        measured = np.maximum(np.minimum(step, self._step), NOISE_KEPT * self._noise)
        self._noise, self._step = np.where(moved, self._noise, measured), step

    def _scene(self) -> SceneChange:
        share = self._changed.mean()
        if share >= PAN_SHARE and is_panned(self._latest.small, self._cached.small):
            return SceneChange.PAN
        return SceneChange.CUT if share >= CUT_SHARE else SceneChange.SAME


def _most(differences: np.ndarray, height: int, columns: int) -> np.ndarray:
    """Largest value in each cell of so many pixels' height: (rows, columns)."""
    # Rows of pixels first: the long axis stays contiguous, which is four times faster than one reduction.
    lines = differences.reshape(len(differences) // height, height, -1).max(axis=1)
    return lines.reshape(len(lines), columns, -1).max(axis=2)


def _reaches(differences: np.ndarray, threshold: float, noise: np.ndarray) -> np.ndarray:
    """Cells that reach a threshold, or what noise explains there if that is more, at either scale."""
    return (differences >= np.maximum(threshold, noise)).any(axis=0)
