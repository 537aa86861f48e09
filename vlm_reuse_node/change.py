"""Which cells of a picture changed against the pixels whose state is cached for them. NumPy and OpenCV only.

The statistic and the two thresholds are those of arXiv 2605.03351 (section 1 of its planner); unlike there, the
comparison is with the cached pixels, not the previous picture, so that slow drift adds up and is seen.
"""

from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np

from vlm_reuse_node.config import Config

# Blocks a cell is cut into along each side; their means have little noise, so that small steady differences show.
BLOCKS = 4
# Standard deviations of a difference that noise alone does not reach in any pixel of thousands of pictures.
NOISE_FACTOR = 6.5
# Noise raises no threshold above this many times change_threshold: a camera that shakes must not go blind.
MOST_RAISED = 2
# Noise is measured between two pictures that differ visibly in at most this share of their blocks.
STATIC_SHARE = 0.1
# Share of the way that the kept noise rises to a higher measured one; to a lower one it falls at once.
NOISE_RISE = 0.05
# Exposure is told from blocks that are neither near black nor near white, if there is at least this share of them.
EXPOSED, EXPOSED_SHARE = (16, 250), 0.1
# A pan: from this share of changed cells on, when the shifted picture explains at least this share of the difference.
PAN_SHARE, PAN_EXPLAINED = 0.1, 0.5
LEAST_PAN = 0.2  # blocks


class Scene(StrEnum):
    """What happened to the picture as a whole."""

    SAME = 'same'
    PAN = 'pan'
    CUT = 'cut'


@dataclass(frozen=True, eq=False)
class Change:
    """What a picture shows against the cached pixels. Every array is (rows, columns).

    difference: uint8, the largest absolute difference of any pixel and channel of a cell, of 255, after a change of
    exposure was taken out where that explains it. changed: bool. stale: bool, the cells to refresh: changed, beside a
    changed one (change_halo), in doubt for too long, or all of them when the scene is no longer the same.
    doubt_s: float64, seconds since a picture last showed the cell unchanged.
    """

    difference: np.ndarray
    changed: np.ndarray
    stale: np.ndarray
    doubt_s: np.ndarray
    scene: Scene


@dataclass(frozen=True, eq=False)
class _View:
    """A picture at two scales: pixels as the model sees them, and the means of BLOCKS x BLOCKS blocks of each cell."""

    pixels: np.ndarray
    blocks: np.ndarray

    @property
    def scales(self):
        return self.pixels, self.blocks


class ChangeDetector:
    """Compares one camera's pictures of one size with the cached pixels of every cell, at the model's resolution.

    A cell is changed when its difference reaches change_threshold, and stays changed until it is refreshed or
    static: below static_threshold. Between the two it is in doubt, and overdue after max_cell_age_s. Both thresholds
    are raised to what the camera's noise explains; the means of blocks, with little noise, are held to them as well.

    A change of exposure of the whole picture, by a factor within 1 + exposure_compensation, makes no cell changed, yet
    its cells are in doubt: a lasting one is refreshed when they are overdue. Until then the kept state is exact for the
    cached picture, which is darker or brighter than the newest one.
    """

    def __init__(self, rgb: np.ndarray, stamp_ns: int, rows: int, columns: int, cell_px: int):
        """Remember the (height, width, 3) uint8 picture whose state is cached, cut into rows x columns cells."""
        self._grid, self._cell_px = (rows, columns), cell_px
        self._cached = self._latest = self._see(rgb)
        self._stamp_ns = stamp_ns
        self._known_ns = np.full(self._grid, stamp_ns, np.int64)
        self._changed = np.zeros(self._grid, bool)
        self._noise: np.ndarray | None = None  # standard deviation of a difference at each scale

    def compare(self, rgb: np.ndarray, stamp_ns: int, config: Config) -> Change:
        """What a picture of the same size, taken at `stamp_ns`, shows; thresholds and age limit from config."""
        # 1. The picture on the model's grid, and how noisy the camera is.
        view, is_new = self._see(rgb), stamp_ns != self._stamp_ns
        if is_new:
            self._measure_noise(view, config)
        self._latest, self._stamp_ns = view, stamp_ns
        # 2. The difference as it is, and with a change of exposure taken out.
        gains = {1.0, _exposure(view, self._cached, config.exposure_compensation)}
        found = [self._differences(view, gain) for gain in gains]
        # 3. Changed is what neither explains; static is what both find unchanged.
        static = ~np.any([self._reaches(each, config.static_threshold, config) for each in found], axis=0)
        changed = np.all([self._reaches(each, config.change_threshold, config) for each in found], axis=0)
        self._changed = changed | (self._changed & ~static)
        self._known_ns[static] = stamp_ns
        # 4. What must be refreshed.
        scene, doubt_s = self._scene(view, config), self.doubt_s(stamp_ns)
        stale = _grown(self._changed, config.change_halo) | (doubt_s > config.max_cell_age_s) | (scene != Scene.SAME)
        return Change(np.min([each.max(axis=0) for each in found], axis=0), self._changed, stale, doubt_s, scene)

    def refresh(self, cells: np.ndarray | None = None) -> None:
        """Take the picture compared last as the cached pixels of these cells, (rows, columns) bool; None: of all."""
        if cells is None or cells.all():
            self._cached = self._latest
            cells = np.ones(self._grid, bool)
        else:
            for latest, cached in zip(self._latest.scales, self._cached.scales):
                cv2.copyTo(latest, _spread(cells, latest), cached)
        self._changed = self._changed & ~cells
        self._known_ns[cells] = self._stamp_ns

    def doubt_s(self, stamp_ns: int) -> np.ndarray:
        """Seconds from the last picture that showed each cell unchanged to `stamp_ns`: (rows, columns) float64."""
        return (stamp_ns - self._known_ns) / 1e9

    def _see(self, rgb):
        """The picture on the model's pixel grid; averaging areas also averages sensor noise."""
        rows, columns = self._grid
        pixels = cv2.resize(rgb, (columns * self._cell_px, rows * self._cell_px), interpolation=cv2.INTER_AREA)
        return _View(pixels, cv2.resize(pixels, (columns * BLOCKS, rows * BLOCKS), interpolation=cv2.INTER_AREA))

    def _differences(self, view, gain):
        """Largest difference of any pixel and any block of each cell: (2, rows, columns) uint8."""
        rows, columns = self._grid
        largest = []
        for now, cached in zip(view.scales, self._cached.scales):
            difference = _difference(now, cached, gain)
            # Rows of pixels first: the long axis stays contiguous, which is four times faster than one reduction.
            strips = difference.reshape(rows, len(now) // rows, -1).max(axis=1)
            largest.append(strips.reshape(rows, columns, -1).max(axis=2))
        return np.stack(largest)

    def _reaches(self, differences, threshold, config):
        """Cells that reach a threshold, or what the camera's noise explains if that is more, at either scale."""
        noise = 0 if self._noise is None else NOISE_FACTOR * self._noise
        least = np.maximum(threshold, np.minimum(noise, MOST_RAISED * config.change_threshold))
        return (differences >= np.reshape(least, (-1, 1, 1))).any(axis=0)

    def _measure_noise(self, view, config):
        """Compare with the previous picture, not the cached one: what drifts slowly is no noise."""
        step, gain = self._cell_px // BLOCKS, _exposure(view, self._latest, config.exposure_compensation)
        pixels = _difference(view.pixels[::step, ::step], self._latest.pixels[::step, ::step], gain)
        blocks = _difference(view.blocks, self._latest.blocks, gain)
        if np.mean(blocks >= config.static_threshold) > STATIC_SHARE:
            return
        measured = np.array([_deviation(pixels), _deviation(blocks)])
        if self._noise is not None:
            measured = np.minimum(measured, self._noise + NOISE_RISE * (measured - self._noise))
        self._noise = measured

    def _scene(self, view, config):
        share = self._changed.mean()
        if share >= PAN_SHARE and _is_shifted(view.blocks, self._cached.blocks):
            return Scene.PAN
        return Scene.CUT if share >= config.scene_change_share else Scene.SAME


def _difference(now, then, gain):
    """Absolute difference with the exposure of `now` over `then` taken out.

    The darker one is brightened, as the camera would have done it: what is white in the brighter one gets white too.
    """
    if gain > 1:
        then = cv2.convertScaleAbs(then, alpha=gain)
    elif gain < 1:
        now = cv2.convertScaleAbs(now, alpha=1 / gain)
    return cv2.absdiff(now, then)


def _exposure(now, then, most):
    """Factor by which the whole picture got brighter; 1 where that is less than a grey level, or beyond 1 + most.

    The median of the blocks' ratios, so that what changed in less than half of the picture has no say.
    """
    darkest, brightest = EXPOSED
    now, then = (view.blocks.max(axis=2).astype(np.float32) for view in (now, then))
    usable = (np.minimum(now, then) >= darkest) & (np.maximum(now, then) < brightest)
    if usable.mean() < EXPOSED_SHARE:
        return 1.0
    gain = float(np.median(now[usable] / then[usable]))
    return gain if 1 / 255 < max(gain, 1 / gain) - 1 <= most else 1.0


def _deviation(differences):
    """Standard deviation of a normal noise whose absolute differences, whole grey levels, have the same median."""
    counts = np.bincount(differences.ravel(), minlength=256)
    edges = np.maximum(np.arange(257) - 0.5, 0)  # what is rounded to 0 is up to 0.5
    return float(np.interp(0.5, np.append(0, counts.cumsum()) / differences.size, edges)) / 0.6745


def _is_shifted(now, then):
    """Whether one picture is the other moved by a part of its width or height, from their blocks."""
    now, then = (cv2.cvtColor(blocks, cv2.COLOR_RGB2GRAY).astype(np.float32) for blocks in (now, then))
    height, width = now.shape
    (x, y), _ = cv2.phaseCorrelate(then, now, cv2.createHanningWindow((width, height), cv2.CV_32F))
    if not LEAST_PAN <= np.hypot(x, y) <= min(height, width) / 2:
        return False
    moved = cv2.warpAffine(then, np.float32([[1, 0, x], [0, 1, y]]), (width, height))
    inner = tuple(slice(max(0, int(np.ceil(shift))), side + min(0, int(np.floor(shift))))
                  for shift, side in ((y, height), (x, width)))
    left, before = (float(cv2.absdiff(now[inner], other[inner]).mean()) for other in (moved, then))
    return left <= (1 - PAN_EXPLAINED) * before


def _grown(cells, halo):
    """The cells and those up to `halo` cells beside them."""
    return cv2.dilate(cells.astype(np.uint8), np.ones((2 * halo + 1,) * 2, np.uint8)).astype(bool)


def _spread(cells, picture):
    """(rows, columns) bool as a mask of the picture's height and width, uint8."""
    return cv2.resize(cells.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
