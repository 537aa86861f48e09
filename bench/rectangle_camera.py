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

"""A camera whose pictures differ in the same few cells, one from the next."""

import cv2
import numpy as np

from vlm_reuse_node.model.families.base import Grid
from vlm_reuse_node.scene.frame import Frame


class RectangleCamera:
    """Gives frames in which the same cells differ from the frame before: a rectangle."""

    def __init__(self, first: Frame, grid: Grid, cells: int, place: tuple[float, float] = (0.5, 0.5)) -> None:
        """Change so many cells, in a rectangle as square as possible.

        place: how far down and how far to the right it is, from 0 to 1.
        """
        self._first = first
        self._count = 0
        columns = min(grid.columns, int(np.ceil(np.sqrt(cells * grid.columns / grid.rows)))) if cells else 0
        rows = -(-cells // columns) if cells else 0
        top, left = int(place[0] * (grid.rows - rows) + 1e-6), int(place[1] * (grid.columns - columns) + 1e-6)
        self._mask = np.zeros(grid, np.uint8)
        for number in range(cells):
            self._mask[top + number // columns, left + number % columns] = 1

    @property
    def cells(self) -> int:
        """How many cells are changed."""
        return int(self._mask.sum())

    @property
    def numbers(self) -> np.ndarray:
        """The numbers of these cells, (cells,) ascending."""
        return np.flatnonzero(self._mask)

    def frame(self) -> Frame:
        """Return the next frame."""
        self._count += 1
        height, width = self._first.rgb.shape[:2]
        rows, columns = self._mask.shape
        # Only pixels inside the cells: a pixel on an edge would change the neighbouring cell too.
        inside = np.zeros((rows * 4, columns * 4), np.uint8)
        inside[1::4, 1::4] = inside[2::4, 2::4] = inside[1::4, 2::4] = inside[2::4, 1::4] = self._mask
        where = cv2.resize(inside, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
        rgb = self._first.rgb.copy()
        if self._count % 2:
            rgb[where] ^= 0x80
        return Frame(rgb, self._first.stamp_ns + 1_000_000 * self._count)
