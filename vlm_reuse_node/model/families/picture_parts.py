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

"""Pixel values of some cells of a picture, without running the image processor on the whole picture."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import cv2
import mlx.core as mx
import numpy as np
from PIL import Image

from vlm_reuse_node.model.families.base import Grid
from vlm_reuse_node.model.families.sparse_vision import patch_rows

# By how much of the range from black to white a part that was prepared by itself may differ: three grey levels, since
# both are rounded twice.
ROUNDING = 3 / 255
SQUARE = 2  # pixels, in the picture as the model sees it

# Pixel values of a whole picture, mx (patches, values), and its grid.
Prepare = Callable[[np.ndarray], tuple[mx.array, Grid]]


class CellPixels(NamedTuple):
    """Pixel values of some cells of a picture.

    values: mx (cells * patches of a cell, values), patches cell by cell. cells: the cells' numbers, ascending.
    """

    values: mx.array
    cells: np.ndarray

    def of(self, cells: np.ndarray, per_cell: int) -> mx.array:
        """Return the values of these cells, which have `per_cell` patches each."""
        return self.values[patch_rows(np.searchsorted(self.cells, cells), per_cell)]


class PictureParts:
    """Prepares parts of pictures, for an image processor that resizes with Pillow's bicubic filter."""

    def __init__(self, prepare: Prepare, prepare_resized: Prepare, cell_px: int, per_cell: int) -> None:
        """Take the image processor as `families.base.Family.prepare`.

        prepare_resized: the same for a picture that already has the size the model needs. cell_px: pixels of a cell's
        side. per_cell: patches of a cell.
        """
        self._prepare = prepare
        self._prepare_resized = prepare_resized
        self._cell_px = cell_px
        self._per_cell = per_cell
        self._orders = cache(self._find_orders)

    def around(self, rgb: np.ndarray, grid: Grid, cells: np.ndarray) -> CellPixels | mx.array:
        """Prepare the smallest rectangle that holds these cells, or the whole picture where a part would differ."""
        orders = self._orders(rgb.shape, grid)
        if not orders:
            pixels, _ = self._prepare(rgb)
            return pixels
        return self._part(rgb, grid, cells, columns_first=orders[0])

    def _part(self, rgb: np.ndarray, grid: Grid, cells: np.ndarray, columns_first: bool) -> CellPixels:
        """The pixel values of the smallest rectangle that holds these cells."""
        rows, columns = (np.arange(side.min(), side.max() + 1) for side in np.divmod(cells, grid.columns))
        top, left = int(rows[0]) * self._cell_px, int(columns[0]) * self._cell_px
        part = (
            slice(top, top + len(rows) * self._cell_px),
            slice(left, left + len(columns) * self._cell_px),
        )
        size = (grid.rows * self._cell_px, grid.columns * self._cell_px)
        values, _ = self._prepare_resized(resized_part(rgb, size, part, columns_first))
        return CellPixels(values, (rows[:, None] * grid.columns + columns).reshape(-1))

    def _find_orders(self, shape: tuple[int, ...], grid: Grid) -> list[bool]:
        """The values of `columns_first` with which a part equals the same part of the whole picture.

        shape: of the picture. Each value is tried on black and white squares as small as the model can tell apart,
        which other filters resize differently.
        """
        squares = np.random.default_rng(0).integers(
            0, 2, (grid.rows * self._cell_px // SQUARE, grid.columns * self._cell_px // SQUARE, 1), np.uint8
        )
        rgb = cv2.resize(255 * squares.repeat(3, axis=2), shape[1::-1], interpolation=cv2.INTER_NEAREST)
        cells = np.arange(grid.cells).reshape(grid)[grid.rows // 2 :, grid.columns // 2 :].reshape(-1)
        whole, _ = self._prepare(rgb)
        expected = whole[patch_rows(cells, self._per_cell)]
        most = ROUNDING * (whole.max() - whole.min())
        orders = []
        for columns_first in (True, False):
            try:
                part = self._part(rgb, grid, cells, columns_first).of(cells, self._per_cell)
            except (ValueError, ZeroDivisionError):  # a shape that the image processor refuses
                continue
            if part.shape == expected.shape and (mx.abs(part - expected).max() <= most).item():
                orders.append(columns_first)
        return orders


def resized_part(rgb: np.ndarray, size: tuple[int, int], part: tuple[slice, slice], columns_first: bool) -> np.ndarray:
    """Return a part of a (height, width, 3) uint8 picture as it is after bicubic resizing of the whole picture.

    size: height and width of the resized picture. part: rows and columns of it. Only the pixels that the part depends
    on are resized. columns_first: which side is resized first; the result in between is rounded to whole grey levels.
    Pillow chooses by the sides, and the caller has to know.
    """
    (rows, top, bottom), (columns, left, right) = (_source(*lengths) for lengths in zip(rgb.shape, size, part))
    height, width = (side.stop - side.start for side in part)
    picture = Image.fromarray(np.ascontiguousarray(rgb[rows, columns]))
    for is_columns in (columns_first, not columns_first):
        if is_columns:
            picture = picture.resize(
                (width, picture.height), Image.Resampling.BICUBIC, (left, 0, right, picture.height)
            )
        else:
            picture = picture.resize((picture.width, height), Image.Resampling.BICUBIC, (0, top, picture.width, bottom))
    return np.array(picture)


def _source(length: int, resized: int, part: slice) -> tuple[slice, float, float]:
    """The pixels of a side that a part of its resized one depends on, and the ends of the part among them."""
    scale = length / resized
    reach = int(2 * max(scale, 1)) + 2  # of the cubic filter, which becomes wider when the picture becomes smaller
    first = max(0, int(part.start * scale) - reach)
    last = min(length, int(part.stop * scale) + reach)
    return slice(first, last), part.start * scale - first, min(part.stop * scale, length) - first
