"""Pixel values of some cells of a picture, without running the image processor on all of it."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import cv2
import mlx.core as mx
import numpy as np
from PIL import Image

from vlm_reuse_node.model.families.base import Grid
from vlm_reuse_node.model.families.sparse_vision import patches

# A part prepared by itself may differ by so much of the range from black to white: three grey levels, which are
# rounded twice.
ROUNDING = 3 / 255
SQUARE = 2  # pixels as the model sees them


class CellPixels(NamedTuple):
    """Pixel values of some cells of a picture.

    values: mx (cells * patches of a cell, values), patches cell by cell. cells: their numbers, ascending.
    """

    values: Any
    cells: np.ndarray

    def of(self, cells: np.ndarray, each: int) -> mx.array:
        """Those of these cells, which have `each` patches."""
        return self.values[patches(np.searchsorted(self.cells, cells), each)]


class PictureParts:
    """Prepares parts of pictures, for an image processor that resizes with Pillow's bicubic filter."""

    def __init__(self, whole: Callable, sized: Callable, cell_px: int, each: int):
        """Take the image processor, as `families.base.Family.prepare`.

        sized: the same for a picture that has the size the model wants. cell_px: pixels of a cell's side.
        each: patches of a cell.
        """
        self._whole, self._sized, self._cell_px, self._each = whole, sized, cell_px, each
        self._orders = cache(self._orders_that_are_right)

    def around(self, rgb: np.ndarray, grid: Grid, cells: np.ndarray) -> CellPixels | mx.array:
        """Prepare the smallest rectangle that holds these cells; the whole picture where that is not the same."""
        orders = self._orders(rgb.shape, grid)
        return self._part(rgb, grid, cells, orders[0]) if orders else self._whole(rgb)[0]

    def _part(self, rgb, grid, cells, columns_first):
        spans = [(int(side.min()), int(side.max()) + 1) for side in np.divmod(cells, grid.columns)]
        part = tuple(slice(first * self._cell_px, last * self._cell_px) for first, last in spans)
        size = grid.rows * self._cell_px, grid.columns * self._cell_px
        values, _ = self._sized(resized_part(rgb, size, part, columns_first))
        rows, columns = (np.arange(*span) for span in spans)
        return CellPixels(values, (rows[:, None] * grid.columns + columns).reshape(-1))

    def _orders_that_are_right(self, shape, grid):
        """With which `columns_first` a part is what it is in a whole picture of this shape.

        Tried on black and white squares as small as the model can tell apart: no other filter makes the same of them.
        """
        squares = np.random.default_rng(0).integers(
            0, 2, (grid.rows * self._cell_px // SQUARE, grid.columns * self._cell_px // SQUARE, 1), np.uint8
        )
        rgb = cv2.resize(255 * squares.repeat(3, axis=2), shape[1::-1], interpolation=cv2.INTER_NEAREST)
        cells = np.arange(grid.cells).reshape(grid)[grid.rows // 2 :, grid.columns // 2 :].reshape(-1)
        whole, _ = self._whole(rgb)
        expected, most = whole[patches(cells, self._each)], ROUNDING * (whole.max() - whole.min())
        orders = []
        for columns_first in (True, False):
            try:
                part = self._part(rgb, grid, cells, columns_first).of(cells, self._each)
            except (ValueError, ZeroDivisionError):  # a shape the image processor refuses
                continue
            if part.shape == expected.shape and (mx.abs(part - expected).max() <= most).item():
                orders.append(columns_first)
        return orders


def resized_part(rgb: np.ndarray, size: tuple[int, int], part: tuple[slice, slice], columns_first: bool) -> np.ndarray:
    """What a part of a (height, width, 3) uint8 picture is after bicubic resizing of all of it, without that work.

    size, part: height and width, and rows and columns, of the resized picture. Pixels beyond the part are taken into
    account as in the whole picture. columns_first: which side is resized first; what lies between is rounded to whole
    grey levels. Pillow chooses by the sides, and the caller has to know.
    """
    spans = [_span(*lengths) for lengths in zip(rgb.shape, size, part)]
    (_, top, bottom), (_, left, right) = spans
    height, width = (side.stop - side.start for side in part)
    picture = Image.fromarray(np.ascontiguousarray(rgb[tuple(around for around, *_ in spans)]))
    for columns in (columns_first, not columns_first):
        size, box = (
            ((width, picture.height), (left, 0, right, picture.height))
            if columns
            else ((picture.width, height), (0, top, picture.width, bottom))
        )
        picture = picture.resize(size, Image.Resampling.BICUBIC, box)
    return np.array(picture)


def _span(length, resized, part):
    """The pixels that a part of a resized side is made of, as a slice, and its two ends among them."""
    scale = length / resized
    reach = int(2 * max(scale, 1)) + 2  # of the cubic filter, which gets wider when the picture gets smaller
    first, last = max(0, int(part.start * scale) - reach), min(length, int(part.stop * scale) + reach)
    return slice(first, last), part.start * scale - first, min(part.stop * scale, length) - first
