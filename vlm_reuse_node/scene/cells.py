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

"""Masks over the grid of cells. A grid covers the whole frame evenly."""

import cv2
import numpy as np


def spread(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a mask of cells, (rows, columns) bool, up to pixels: (height, width) uint8, 255 where a cell is set."""
    return cv2.resize(cells.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_NEAREST)


def grown(cells: np.ndarray, halo: int) -> np.ndarray:
    """Grow a mask of cells, (rows, columns) bool, by `halo` cells on every side."""
    return cv2.dilate(cells.astype(np.uint8), np.ones((2 * halo + 1,) * 2, np.uint8)).astype(bool)
