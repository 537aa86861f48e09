"""A frame as the change detector compares it: on the model's pixel grid, and as the means of blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from vlm_reuse_node.scene.cells import spread

# Blocks a cell is cut into along each side; their means have little noise, so that small steady differences show.
BLOCKS = 4
# From this factor on, a frame that is shrunk is averaged; below it every pixel still counts without.
LEAST_SHRUNK = 1.5
# Pixels: the width of the small picture that pans are looked for in.
SMALL_WIDTH = 128


@dataclass(frozen=True, eq=False)
class ScaledFrame:
    """A frame at two scales.

    pixels: (height, width, 3) uint8, as the model sees them. blocks: the means of BLOCKS x BLOCKS blocks of each cell,
    likewise. grey: of the blocks, float32.
    """

    pixels: np.ndarray
    blocks: np.ndarray
    grey: np.ndarray

    @classmethod
    def of(cls, rgb: np.ndarray, rows: int, columns: int, cell_px: int) -> 'ScaledFrame':
        """Shrink a (height, width, 3) uint8 frame to rows x columns cells; averaging areas averages noise too."""
        size = columns * cell_px, rows * cell_px
        # Where there is hardly anything to average, areas cost four times as much as what lies between two pixels.
        shrinks = rgb.shape[1] >= LEAST_SHRUNK * size[0] or rgb.shape[0] >= LEAST_SHRUNK * size[1]
        pixels = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        blocks = cv2.resize(pixels, (columns * BLOCKS, rows * BLOCKS), interpolation=cv2.INTER_AREA)
        return cls(pixels, blocks, cv2.cvtColor(blocks, cv2.COLOR_RGB2GRAY).astype(np.float32))

    @property
    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels, and means of blocks."""
        return self.pixels, self.blocks

    @cached_property
    def small(self) -> np.ndarray:
        """Grey, SMALL_WIDTH wide, float32. Kept: a pan looks at every frame twice, as the new and as the old one."""
        height, width = max(1, SMALL_WIDTH * self.pixels.shape[0] // self.pixels.shape[1]), SMALL_WIDTH
        step = max(1, self.pixels.shape[1] // (2 * width))  # two or more are averaged; those between are not needed
        small = cv2.resize(self.pixels[::step, ::step], (width, height), interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)

    def exposed(self, gain: float) -> 'ScaledFrame':
        """The same frame under another exposure."""
        pixels, blocks = (cv2.convertScaleAbs(each, alpha=gain) for each in self.scales)
        return ScaledFrame(pixels, blocks, gain * self.grey)

    def copy(self) -> 'ScaledFrame':
        """The same in arrays of its own."""
        return ScaledFrame(*(each.copy() for each in self._arrays()))

    def with_cells(self, other: 'ScaledFrame', cells: np.ndarray) -> 'ScaledFrame':
        """This frame with some cells, (rows, columns) bool, of another one. This one's arrays are used, and change."""
        for mine, theirs in zip(self._arrays(), other._arrays()):
            cv2.copyTo(theirs, spread(cells, *theirs.shape[:2]), mine)
        return ScaledFrame(*self._arrays())  # without the small picture that was made of them

    def _arrays(self) -> Iterator[np.ndarray]:
        return iter((self.pixels, self.blocks, self.grey))
