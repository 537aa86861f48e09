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

"""Compares two frames cell by cell."""

from dataclasses import dataclass

import numpy as np

from vlm_reuse_node.scene.exposure import difference
from vlm_reuse_node.scene.scaled_frame import BLOCKS, ScaledFrame

# A cell differs when at least this share of its values (pixels times channels) does, or the mean of one of its blocks.
# It lies between single pixels, which the vision tower hardly notices, and a line of one pixel through the cell.
LEAST_SHARE = 0.01
# Frames are compared in strips that stay in the processor's cache.
STRIP_BYTES = 2**17


@dataclass(frozen=True, eq=False)
class Thresholds:
    """From which difference on values differ: (rows, columns) uint8 for the pixels of each cell and for its blocks."""

    pixels: np.ndarray
    blocks: np.ndarray


@dataclass(frozen=True, eq=False)
class CellDifferences:
    """Every array is (rows, columns).

    largest: uint8, the largest difference of the mean of a block. differs, differs_much: bool, the cells that differ by
    the lower and by the higher thresholds.
    """

    largest: np.ndarray
    differs: np.ndarray
    differs_much: np.ndarray


def cell_differences(
    now: ScaledFrame, then: ScaledFrame, gain: float, low: Thresholds, high: Thresholds
) -> CellDifferences:
    """Compare two frames with the exposure of `now` over `then` taken out."""
    largest = largest_of_blocks(now, then, gain)
    differs, differs_much = largest >= low.blocks, largest >= high.blocks
    height = len(now.pixels) // len(largest)
    rows = max(1, STRIP_BYTES // now.pixels[:height].nbytes)
    for row in range(0, len(largest), rows):
        strip, cells = slice(row * height, (row + rows) * height), slice(row, row + rows)
        values = difference(now.pixels[strip], then.pixels[strip], gain)
        differs[cells] |= _reaches(values, low.pixels[cells])
        if differs[cells].any():
            differs_much[cells] |= _reaches(values, high.pixels[cells])
    return CellDifferences(largest, differs, differs_much)


def largest_of_blocks(now: ScaledFrame, then: ScaledFrame, gain: float) -> np.ndarray:
    """Largest difference of the mean of a block in each cell: (rows, columns) uint8."""
    return most_of_blocks(difference(now.blocks, then.blocks, gain))


def most_of_blocks(blocks: np.ndarray) -> np.ndarray:
    """Largest value of the blocks of each cell: (rows, columns). blocks: one value or three of each."""
    # Reduce rows first: the long axis stays contiguous, and this is several times faster than one reduction.
    lines = blocks.reshape(len(blocks) // BLOCKS, BLOCKS, -1).max(axis=1)
    return lines.reshape(len(lines), blocks.shape[1] // BLOCKS, -1).max(axis=2)


def _reaches(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Cells of which enough values reach the cell's threshold. values: (height, width, 3) uint8."""
    rows, columns = thresholds.shape
    lines = values.reshape(rows, len(values) // rows, -1)
    reached = lines >= thresholds.repeat(lines.shape[2] // columns, axis=1)[:, None]
    # Count along the columns of pixels first: the long axis stays contiguous, and a byte holds the count.
    counts = reached.view(np.uint8).sum(axis=1, dtype=np.uint8)
    return counts.reshape(rows, columns, -1).sum(axis=2) >= LEAST_SHARE * values.size / thresholds.size
