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

"""Shared by Qwen3-VL and Qwen3.5: a vision tower whose blocks all look at the whole picture, and single cells of it.

Source: mlx_vlm/models/qwen3_vl/vision.py, which qwen3_5 uses too. With DeepStack the tower gives each cell one vector
for the prompt and one more, a level, for each of the first language layers. Here they are one array, side by side.
"""

from functools import cache, partial
from typing import Any

import mlx.core as mx
import numpy as np

from vlm_reuse_node.model.families import qwen_blocks
from vlm_reuse_node.model.families.base import Grid, VisionState
from vlm_reuse_node.model.families.picture_parts import CellPixels
from vlm_reuse_node.model.families.qwen_vision import QwenFamily


class Qwen3VisionFamily(QwenFamily):
    """All of `families.base.Family`."""

    branches = True
    encodes_cells = True

    def __init__(self, model: Any, processor: Any) -> None:
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        super().__init__(model, processor)
        self._layout = cache(self._one_window)

    def encode(self, pixels: mx.array, grid: Grid) -> mx.array:
        """Vision features and their levels side by side, mx (cells, width * (1 + levels))."""
        return self._encode(pixels, grid)

    def _encode(self, pixels: Any, grid: Grid) -> mx.array:
        """See `encode`."""
        features, levels = self._vision(pixels, self.patch_grid(grid))
        return mx.concatenate([features, *levels], axis=-1) if levels else features

    def encode_cells(
        self, pixels: mx.array | CellPixels, grid: Grid, cells: np.ndarray, older: VisionState | None
    ) -> VisionState:
        """Against the older picture in every block; levels too."""
        if older is None:
            run = partial(self._encode, pixels, grid)
            return qwen_blocks.encode_all_cells(self._vision, self._layout(grid), run, 0)
        levels = dict(zip(self._vision.deepstack_visual_indexes, self._vision.deepstack_merger_list))
        return qwen_blocks.encode_cells(self._vision, self._layout(grid), pixels, cells, older, 0, levels)

    def _one_window(self, grid: Grid) -> qwen_blocks.Layout:
        """Cells row by row; all of them are one window."""
        patch_grid = self.patch_grid(grid)
        return qwen_blocks.Layout(
            np.arange(grid.cells),
            np.array([0, grid.cells]),
            self._vision.rot_pos_emb(patch_grid),
            self._vision.fast_pos_embed_interpolate(patch_grid),
        )
