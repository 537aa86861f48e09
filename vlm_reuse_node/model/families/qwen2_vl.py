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

"""Qwen2-VL: square cells of 28 px, M-RoPE in three blocks, a flat KV cache, a vision tower without windows.

Source: mlx_vlm/models/qwen2_vl.
"""

from functools import cache, partial
from typing import Any

import mlx.core as mx
import numpy as np

from vlm_reuse_node.model.families import qwen_blocks
from vlm_reuse_node.model.families.base import Grid, VisionState
from vlm_reuse_node.model.families.picture_parts import CellPixels
from vlm_reuse_node.model.families.qwen_vision import QwenFamily


class Family(QwenFamily):
    """See `families.base.Family`."""

    branches = True
    encodes_cells = True

    def __init__(self, model: Any, processor: Any) -> None:
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        super().__init__(model, processor)
        self._layout = cache(self._windows)
        self._first = 0  # the first block in which encoded cells look at others than those of their window

    def encode(self, pixels: mx.array, grid: Grid) -> mx.array:
        """Vision features, mx (cells, hidden)."""
        return self._vision(pixels, self.patch_grid(grid), output_hidden_states=False)

    def encode_cells(
        self, pixels: mx.array | CellPixels, grid: Grid, cells: np.ndarray, older: VisionState | None
    ) -> VisionState:
        """Exact for whole windows up to the first such block; from there on against the older picture."""
        if older is None:
            run = partial(self._vision, pixels, self.patch_grid(grid), output_hidden_states=False)
            return qwen_blocks.encode_all_cells(self._vision, self._layout(grid), run, self._first)
        return qwen_blocks.encode_cells(self._vision, self._layout(grid), pixels, cells, older, self._first, {})

    def _windows(self, grid: Grid) -> qwen_blocks.Layout:
        """Cells row by row; all of them are one window."""
        return qwen_blocks.Layout(
            np.arange(grid.cells), np.array([0, grid.cells]), self._vision.rot_pos_emb(self.patch_grid(grid))
        )
