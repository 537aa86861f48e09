"""Which cells of a picture changed against the picture whose state is cached. NumPy and OpenCV only.

The statistic and the two thresholds are those of arXiv 2605.03351 (section 1 of its planner); unlike there, the
comparison is with the cached picture, not the previous one, so that slow drift adds up and is seen.
"""

import cv2
import numpy as np


class ChangeDetector:
    """Compares pictures of one size with one cached picture, at the resolution the model sees."""

    def __init__(self, rgb: np.ndarray, rows: int, columns: int, cell_px: int):
        """Remember the (height, width, 3) uint8 picture whose state is cached, cut into rows x columns cells."""
        self._rows, self._columns, self._cell_px = rows, columns, cell_px
        self._cached = self._shrink(rgb)

    def difference(self, rgb: np.ndarray) -> np.ndarray:
        """Largest absolute difference of any pixel and channel of each cell: (rows, columns) uint8, of 255."""
        pixels = cv2.absdiff(self._shrink(rgb), self._cached)
        # Rows of pixels first: the long axis stays contiguous, which is four times faster than one reduction.
        strips = pixels.reshape(self._rows, self._cell_px, -1).max(axis=1)
        return strips.reshape(self._rows, self._columns, -1).max(axis=2)

    def _shrink(self, rgb):
        """The picture on the model's pixel grid; averaging areas also averages sensor noise."""
        size = self._columns * self._cell_px, self._rows * self._cell_px
        return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


class CellAges:
    """Since when each cell is not known to be right: the stamp of the last picture that showed it unchanged."""

    def __init__(self, rows: int, columns: int, stamp_ns: int):
        """Start with every cell refreshed at `stamp_ns`."""
        self._known_ns = np.full((rows, columns), stamp_ns, np.int64)

    def see_static(self, static: np.ndarray, stamp_ns: int) -> None:
        """Note the cells, (rows, columns) bool, that the picture of `stamp_ns` showed unchanged."""
        self._known_ns[static] = stamp_ns

    def seconds(self, stamp_ns: int) -> np.ndarray:
        """Age of each cell at `stamp_ns`: (rows, columns) float64, seconds."""
        return (stamp_ns - self._known_ns) / 1e9
