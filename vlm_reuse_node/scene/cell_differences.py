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
LEAST_SHARE = 0.0075


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
    for row in range(len(largest)):  # one row of cells at a time stays in the processor's cache
        strip = slice(row * height, (row + 1) * height)
        values = difference(now.pixels[strip], then.pixels[strip], gain)
        differs[row] |= _reaches(values, low.pixels[row])
        if differs[row].any():
            differs_much[row] |= _reaches(values, high.pixels[row])
    return CellDifferences(largest, differs, differs_much)


def largest_of_blocks(now: ScaledFrame, then: ScaledFrame, gain: float) -> np.ndarray:
    """Largest difference of the mean of a block in each cell: (rows, columns) uint8."""
    blocks = difference(now.blocks, then.blocks, gain)
    return blocks.reshape(-1, BLOCKS, now.columns, BLOCKS * 3).max(axis=(1, 3))


def _reaches(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Cells of which enough values reach the cell's threshold, (columns,) bool. values: (height, width, 3) uint8."""
    lines = values.reshape(len(values), -1)
    reached = lines >= np.repeat(thresholds, lines.shape[1] // len(thresholds))
    # Count down the columns of pixels first: that is contiguous, and a byte holds it.
    counts = reached.view(np.uint8).sum(axis=0, dtype=np.uint8 if len(lines) < 256 else np.uint32)
    return counts.reshape(len(thresholds), -1).sum(axis=1) >= LEAST_SHARE * values.size / len(thresholds)
