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

"""Qwen2.5-VL: square cells of 28 px, M-RoPE in three blocks, a flat KV cache.

Source: mlx_vlm/models/qwen2_5_vl.
"""

from typing import Any

import numpy as np

from vlm_reuse_node.model.families import qwen2_vl, qwen_blocks
from vlm_reuse_node.model.families.base import Grid
from vlm_reuse_node.model.families.sparse_vision import patch_rows


class Family(qwen2_vl.Family):
    """See `families.base.Family`. As Qwen2-VL, but most blocks of its vision tower look at windows alone."""

    def __init__(self, model: Any, processor: Any) -> None:
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        super().__init__(model, processor)
        self._first = min(self._vision.fullatt_block_indexes)

    def read_cells(self, grid: Grid, cells: np.ndarray) -> np.ndarray:
        """All cells of the windows that hold these."""
        return qwen_blocks.read_cells(self._layout(grid), cells, self._first)

    def _windows(self, grid: Grid) -> qwen_blocks.Layout:
        """Cells window by window; windows at the right and bottom edges may be smaller."""
        side = self._vision.window_size // self.cell_px
        rows, columns = np.divmod(np.arange(grid.cells), grid.columns)
        order = np.lexsort((columns, rows, columns // side, rows // side))
        windows = (rows // side * grid.columns + columns // side)[order]
        starts = np.append(np.flatnonzero(np.diff(windows, prepend=-1)), grid.cells)
        angles = self._vision.rot_pos_emb(self.patch_grid(grid))
        return qwen_blocks.Layout(order, starts, angles[patch_rows(order, self._merge**2)])
