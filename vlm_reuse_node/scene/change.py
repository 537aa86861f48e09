"""Which cells of a picture changed against the pixels whose state is cached for them. NumPy and OpenCV only.

The statistic and the two thresholds are those of arXiv 2605.03351 (section 1 of its planner); unlike there, the
comparison is with the cached pixels, not the previous picture, so that slow drift adds up and is seen.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import cv2
import numpy as np

from vlm_reuse_node.config import Config

# Blocks a cell is cut into along each side; their means have little noise, so that small steady differences show.
BLOCKS = 4
STRIP_ROWS = 2
# From this factor on, a picture that is shrunk is averaged; below it every pixel still counts without.
LEAST_SHRUNK = 1.5
# A cell's noise is its largest difference that came twice from one picture to the next. It is forgotten by this factor
# a picture, and taken to reach this many times as far against the cached pixels.
NOISE_KEPT, NOISE_REACH = 0.98, 1.75
# Noise raises no threshold above this many times change_threshold: a camera that shakes must not go blind.
MOST_RAISED = 2
# A cell whose blocks differ by this share of change_threshold from one picture to the next has moved: that is no noise.
MOVED = 0.5
# Exposure is told from cells that are neither near black nor near white, if there is at least this share of them.
EXPOSED, EXPOSED_SHARE = (16, 240), 0.1
# A pan: from this share of changed cells on, when the shifted picture explains at least this share of the difference.
PAN_SHARE, PAN_EXPLAINED = 0.1, 0.5
PAN_WIDTH, LEAST_PAN = 128, 0.5  # pixels: of the pictures that are compared, and of the shift


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
    changed one (change_halo), deferred before, in doubt for too long, or all of them when the scene is no longer the
    same.
    doubt_s: float64, seconds since a picture last showed the cell unchanged.
    """

    difference: np.ndarray
    changed: np.ndarray
    stale: np.ndarray
    doubt_s: np.ndarray
    scene: Scene


@dataclass(frozen=True, eq=False)
class _View:
    """A picture at two scales: pixels as the model sees them, and the means of BLOCKS x BLOCKS blocks of each cell.

    grey: of the blocks, float32.
    """

    pixels: np.ndarray
    blocks: np.ndarray
    grey: np.ndarray

    @property
    def scales(self):
        return self.pixels, self.blocks

    @property
    def arrays(self):
        return self.pixels, self.blocks, self.grey

    @cached_property
    def small(self):
        """Grey, PAN_WIDTH wide, float32. Kept: a pan looks at every picture twice, as the new and as the old one."""
        height, width = max(1, PAN_WIDTH * self.pixels.shape[0] // self.pixels.shape[1]), PAN_WIDTH
        step = max(1, self.pixels.shape[1] // (2 * width))  # two or more are averaged; those between are not needed
        small = cv2.resize(self.pixels[::step, ::step], (width, height), interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)

    def exposed(self, gain):
        """The same picture under another exposure."""
        return _View(*(cv2.convertScaleAbs(each, alpha=gain) for each in self.scales), gain * self.grey)


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
        self._cached = self._latest = self._see(rgb)
        self._stamp_ns = stamp_ns
        # What each cell showed when it was last told as changed; where it shows something a little different, and since
        # when it does.
        self._told = _View(*(each.copy() for each in self._cached.arrays))
        self._aside, self._aside_ns = np.zeros(self._grid, bool), np.zeros(self._grid, np.int64)
        self._known_ns = np.full(self._grid, stamp_ns, np.int64)
        self._changed, self._owed = np.zeros(self._grid, bool), np.zeros(self._grid, bool)
        # What each cell's cached pixels were divided by to have all under one exposure; and the last picture's.
        self._exposures, self._gain = np.ones(self._grid), 1.0
        self._noise = np.zeros((2, *self._grid), np.float32)  # at each scale
        self._step = np.zeros((2, *self._grid), np.uint8)  # differences from the last picture but one to the last

    def compare(self, rgb: np.ndarray, stamp_ns: int, config: Config) -> Change:
        """What a picture of the same size, taken at `stamp_ns`, shows; thresholds and age limit from config."""
        # 1. The difference as it is, and with a change of exposure taken out.
        view, previous, is_new = self._see(rgb), self._latest, stamp_ns != self._stamp_ns
        self._gain = _exposure(view, self._cached, config.exposure_compensation)
        found = self._differences(view, self._cached, *{1.0, self._gain})
        # 2. Changed is what neither explains; static is what both find unchanged.
        noise = self._reach_of_noise(config)
        changed = np.all([_reaches(each, config.change_threshold, noise) for each in found], axis=0)
        static = self._static(found, config.static_threshold, np.minimum(noise, config.change_threshold))
        self._changed = changed | (self._changed & ~static)
        self._known_ns[static & ~self._owed] = stamp_ns
        self._latest, self._stamp_ns = view, stamp_ns
        # 3. How noisy the camera is; learnt last, so that what appears in this picture does not hide itself.
        if is_new:
            self._learn_noise(previous, config)
        # 4. What must be refreshed.
        scene, doubt_s = self._scene(view, config), self.doubt_s(stamp_ns)
        overdue = doubt_s > config.max_cell_age_s
        stale = _grown(self._changed, config.change_halo) | self._owed | overdue | (scene != Scene.SAME)
        return Change(np.min([each.max(axis=0) for each in found], axis=0), self._changed, stale, doubt_s, scene)

    def refresh(self, cells: np.ndarray | None = None) -> None:
        """Take the picture compared last as the cached pixels of these cells, (rows, columns) bool; None: of all."""
        if cells is None or cells.all():
            self._cached, self._exposures = self._latest, np.ones(self._grid)
            cells = np.ones(self._grid, bool)
        else:
            view = self._latest if self._gain == 1 else self._latest.exposed(1 / self._gain)
            self._cached = _copied(view, self._cached, cells)
            self._exposures = np.where(cells, self._gain, self._exposures)
        self._changed, self._owed = self._changed & ~cells, self._owed & ~cells
        self._known_ns[cells] = self._stamp_ns

    def news(self, refreshed: np.ndarray, config: Config) -> np.ndarray:
        """The cells whose cached pixels show something else than when they were last given here.

        Not only those that were found changed: what changes by less with each refresh of everything adds up, as against
        the cached pixels it cannot. refreshed: the stale cells that the last `refresh` was for; none when there was
        none. All (rows, columns) bool.
        """
        told = refreshed.copy()
        if self._cached is self._latest and not told.all():  # all cells were refreshed, not all because they are stale
            gain = _exposure(self._cached, self._told, config.exposure_compensation)
            found, noise = self._differences(self._cached, self._told, *{1.0, gain}), self._reach_of_noise(config)
            told |= np.all([_reaches(each, config.change_threshold, noise) for each in found], axis=0)
            least = np.minimum(noise, config.change_threshold)
            aside = np.any([_reaches(each, config.static_threshold, least) for each in found], axis=0)
            self._aside_ns[aside & ~self._aside], self._aside = self._stamp_ns, aside
        told |= self._aside & (self._stamp_ns - self._aside_ns > 1e9 * config.max_cell_age_s)
        if told.any():
            self._told, self._aside = _copied(self._cached, self._told, told), self._aside & ~told
        return told

    def defer(self, cells: np.ndarray) -> None:
        """Keep these cells, (rows, columns) bool, stale until they are refreshed, whatever they show until then."""
        self._owed = cells

    @property
    def deferred(self) -> np.ndarray:
        """The cells that were deferred last and not refreshed since, (rows, columns) bool."""
        return self._owed

    def doubt_s(self, stamp_ns: int) -> np.ndarray:
        """Seconds from the last picture that showed each cell unchanged to `stamp_ns`: (rows, columns) float64."""
        return (stamp_ns - self._known_ns) / 1e9

    def _see(self, rgb):
        """The picture on the model's pixel grid; averaging areas also averages sensor noise."""
        rows, columns = self._grid
        size = columns * self._cell_px, rows * self._cell_px
        # Where there is hardly anything to average, areas cost four times as much as what lies between two pixels.
        shrinks = rgb.shape[1] >= LEAST_SHRUNK * size[0] or rgb.shape[0] >= LEAST_SHRUNK * size[1]
        pixels = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        blocks = cv2.resize(pixels, (columns * BLOCKS, rows * BLOCKS), interpolation=cv2.INTER_AREA)
        return _View(pixels, blocks, cv2.cvtColor(blocks, cv2.COLOR_RGB2GRAY).astype(np.float32))

    def _differences(self, view, other, *gains):
        """Largest difference of any pixel and any block of each cell: (gains, 2, rows, columns) uint8."""
        return np.stack([self._largest(*pictures, gains) for pictures in zip(view.scales, other.scales)], axis=1)

    def _largest(self, now, then, gains):
        """Largest difference in each cell at one scale, a few rows of cells at a time: those stay in the cache."""
        (rows, columns), height, parts = self._grid, len(now) // self._grid[0], []
        for row in range(0, rows, STRIP_ROWS):
            strip = slice(row * height, (row + STRIP_ROWS) * height)
            parts.append([_most(_difference(now[strip], then[strip], gain), height, columns) for gain in gains])
        return np.concatenate(parts, axis=1)

    def _static(self, found, threshold, noise):
        """Cells that differ neither in what they show nor, in the exposure they were cached under, visibly."""
        unchanged = [~_reaches(each, threshold, noise) for each in found]
        apart = 255 * np.abs(self._gain / self._exposures - 1) >= threshold
        return np.where(self._exposures == 1, np.all(unchanged, axis=0), np.any(unchanged, axis=0) & ~apart)

    def _reach_of_noise(self, config):
        """Difference that noise explains in each cell at each scale: (2, rows, columns)."""
        nearby = np.stack([cv2.dilate(noise, np.ones((3, 3), np.uint8)) for noise in self._noise])
        return np.minimum(NOISE_REACH * nearby, MOST_RAISED * config.change_threshold)

    def _learn_noise(self, previous, config):
        """Compare with the previous picture, not the cached one: what drifts slowly is no noise.

        And noise comes again in the next picture; what appears once does not.
        """
        gain = _exposure(self._latest, previous, config.exposure_compensation)
        step = self._differences(self._latest, previous, gain)[0]
        moved = step[1] >= MOVED * config.change_threshold
        measured = np.maximum(np.minimum(step, self._step), NOISE_KEPT * self._noise)
        self._noise, self._step = np.where(moved, self._noise, measured), step

    def _scene(self, view, config):
        share = self._changed.mean()
        if share >= PAN_SHARE and _is_shifted(view.small, self._cached.small):
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


def _most(difference, height, columns):
    """Largest value in each cell of so many pixels' height: (rows, columns)."""
    # Rows of pixels first: the long axis stays contiguous, which is four times faster than one reduction.
    lines = difference.reshape(len(difference) // height, height, -1).max(axis=1)
    return lines.reshape(len(lines), columns, -1).max(axis=2)


def _reaches(differences, threshold, noise):
    """Cells that reach a threshold, or what noise explains there if that is more, at either scale."""
    return (differences >= np.maximum(threshold, noise)).any(axis=0)


def _exposure(now, then, most):
    """Factor by which the whole picture got brighter; 1 where that is less than a grey level, or beyond 1 + most.

    The median of the cells' ratios, so that what changed in less than half of them has no say.
    """
    darkest, brightest = EXPOSED
    cells = tuple(side // BLOCKS for side in now.grey.shape[::-1])
    now, then = (cv2.resize(view.grey, cells, interpolation=cv2.INTER_AREA) for view in (now, then))
    usable = (np.minimum(now, then) >= darkest) & (np.maximum(now, then) < brightest)
    if usable.mean() < EXPOSED_SHARE:
        return 1.0
    gain = float(np.median(now[usable] / then[usable]))
    return gain if 1 / 255 < max(gain, 1 / gain) - 1 <= most else 1.0


def _is_shifted(now, then):
    """Whether one picture is the other moved by up to half of its shorter side."""
    height, width = now.shape
    # Copies, because OpenCV applies the window in place where the size suits its Fourier transform.
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(then.copy(), now.copy(), window)
    if not LEAST_PAN <= np.hypot(x, y) <= min(height, width) / 2:
        return False
    moved = cv2.warpAffine(then, np.float32([[1, 0, x], [0, 1, y]]), (width, height))
    inner = tuple(
        slice(max(0, int(np.ceil(shift))), side + min(0, int(np.floor(shift))))
        for shift, side in ((y, height), (x, width))
    )
    left, before = (float(cv2.absdiff(now[inner], other[inner]).mean()) for other in (moved, then))
    return left <= (1 - PAN_EXPLAINED) * before


def _grown(cells, halo):
    """The cells and those up to `halo` cells beside them."""
    return cv2.dilate(cells.astype(np.uint8), np.ones((2 * halo + 1,) * 2, np.uint8)).astype(bool)


def _copied(view, into, cells):
    """The second view with these cells of the first, in its own arrays."""
    for new, old in zip(view.arrays, into.arrays):
        cv2.copyTo(new, _spread(cells, new), old)
    return replace(into)  # the arrays alone, not what was made of them


def _spread(cells, picture):
    """(rows, columns) bool as a mask of the picture's height and width, uint8."""
    return cv2.resize(cells.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
