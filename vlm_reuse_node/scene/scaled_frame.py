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

"""A frame as the change detector compares it: at the model's resolution, and as the means of blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from vlm_reuse_node.scene.cells import spread

# Blocks along each side of a cell. Their means carry little noise, so small but steady differences stand out.
BLOCKS = 4
# A frame is averaged when it shrinks by at least this factor. Below it, interpolation still uses every pixel.
LEAST_SHRUNK = 1.5
# Width of the small frame that pans are detected in, pixels.
SMALL_WIDTH = 128


@dataclass(frozen=True, eq=False)
class ScaledFrame:
    """A frame at two scales.

    pixels: (height, width, 3) uint8, at the model's resolution.
    blocks: (BLOCKS * rows, BLOCKS * columns, 3) uint8, the means of BLOCKS x BLOCKS blocks of each cell.
    grey: (BLOCKS * rows, BLOCKS * columns) float32, the blocks as grey levels.
    """

    pixels: np.ndarray
    blocks: np.ndarray
    grey: np.ndarray

    @classmethod
    def of(cls, rgb: np.ndarray, rows: int, columns: int, cell_px: int) -> 'ScaledFrame':
        """Resize a (height, width, 3) uint8 frame to rows x columns cells. Averaging areas also reduces noise."""
        size = columns * cell_px, rows * cell_px
        # At scales near 1, averaging areas takes four times as long as linear interpolation and reduces little noise.
        shrinks = rgb.shape[1] >= LEAST_SHRUNK * size[0] or rgb.shape[0] >= LEAST_SHRUNK * size[1]
        pixels = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        blocks = cv2.resize(pixels, (columns * BLOCKS, rows * BLOCKS), interpolation=cv2.INTER_AREA)
        return cls(pixels, blocks, cv2.cvtColor(blocks, cv2.COLOR_RGB2GRAY).astype(np.float32))

    @property
    def columns(self) -> int:
        """Columns of cells."""
        return self.grey.shape[1] // BLOCKS

    @property
    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """Both scales: pixels, and means of blocks."""
        return self.pixels, self.blocks

    @cached_property
    def small(self) -> np.ndarray:
        """The frame in grey, SMALL_WIDTH wide, float32. Cached, because pan detection may use a frame several times."""
        height, width = max(1, SMALL_WIDTH * self.pixels.shape[0] // self.pixels.shape[1]), SMALL_WIDTH
        step = max(1, self.pixels.shape[1] // (2 * width))  # keep at least two pixels to average for each small one
        small = cv2.resize(self.pixels[::step, ::step], (width, height), interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)

    def exposed(self, gain: float) -> 'ScaledFrame':
        """The same frame with its brightness multiplied by `gain`."""
        pixels, blocks = (cv2.convertScaleAbs(scale, alpha=gain) for scale in self.scales)
        return ScaledFrame(pixels, blocks, gain * self.grey)

    def copy(self) -> 'ScaledFrame':
        """A copy with its own arrays."""
        return ScaledFrame(*(array.copy() for array in self._arrays()))

    def with_cells(self, other: 'ScaledFrame', cells: np.ndarray) -> 'ScaledFrame':
        """Replace some cells, (rows, columns) bool, by those of another frame. This frame's arrays change in place."""
        for mine, theirs in zip(self._arrays(), other._arrays()):
            cv2.copyTo(theirs, spread(cells, *theirs.shape[:2]), mine)
        return ScaledFrame(*self._arrays())  # a new record, without the cached small frame

    def _arrays(self) -> Iterator[np.ndarray]:
        return iter((self.pixels, self.blocks, self.grey))
