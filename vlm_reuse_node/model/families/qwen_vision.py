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

"""Shared by the Qwen families: cells of patches, one image token per cell, M-RoPE with three axes (time, row, column).

Source: mlx_vlm/models/qwen2_5_vl, qwen3_vl and qwen3_5. Their `LanguageModel.__call__` keeps positions in attributes
(`_rope_deltas`, `_position_ids`) that a second session would inherit. So this file calls the layers below it, and gives
them the positions.
"""

import copy
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model.families.base import Grid, even_chunks
from vlm_reuse_node.model.families.picture_parts import CellPixels, PictureParts
from vlm_reuse_node.model.pass_cache import PassCache

AXES = 3


class QwenFamily:
    """All of `families.base.Family` but `encode`."""

    branches = False
    branches_recurrent = False
    marker = None
    one_picture = False
    encodes_cells = False
    two_way = False

    def __init__(self, model: Any, processor: Any) -> None:
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        self._vision = model.vision_tower
        self._language = model.language_model
        self._image_processor = processor.image_processor
        self._merge = model.config.vision_config.spatial_merge_size
        self._image_token = model.config.image_token_id
        # Qwen2-VL's configuration in mlx-vlm does not name it.
        self._end_token = getattr(
            model.config, 'vision_end_token_id', processor.tokenizer.convert_tokens_to_ids('<|vision_end|>')
        )
        self.cell_px = model.config.vision_config.patch_size * self._merge
        without_resizing = copy.copy(self._image_processor)
        without_resizing.min_pixels = 1
        without_resizing.max_pixels = sys.maxsize
        self._parts = PictureParts(
            self.prepare, partial(self._processed, without_resizing), self.cell_px, self._merge**2
        )

    def prepare(self, rgb: np.ndarray) -> tuple[mx.array, Grid]:
        """Pixel values mx (patches, patch values) and the grid."""
        try:
            return self._processed(self._image_processor, rgb)
        except (ValueError, ZeroDivisionError) as error:
            height, width = rgb.shape[:2]
            raise ImageError(
                'size',
                f'The model cannot take a picture of {width} x {height} pixels: {error}. '
                f'Expected sides of at least one pixel and a ratio below 200.',
            ) from error

    def _processed(self, processor: Any, rgb: np.ndarray) -> tuple[mx.array, Grid]:
        """Run an image processor; see `prepare`."""
        inputs = processor(images=[Image.fromarray(rgb)])
        _, rows, columns = (int(side) for side in inputs['image_grid_thw'][0])
        dtype = self._vision.patch_embed.proj.weight.dtype
        return mx.array(inputs['pixel_values']).astype(dtype), Grid(rows // self._merge, columns // self._merge)

    def prepare_cells(self, rgb: np.ndarray, grid: Grid, cells: np.ndarray) -> CellPixels | mx.array:
        """Pixel values of the part of the picture that holds the cells `encode_cells` needs."""
        return self._parts.around(rgb, grid, self.read_cells(grid, cells))

    def read_cells(self, grid: Grid, cells: np.ndarray) -> np.ndarray:
        """The cells whose pixels are needed to encode these, ascending."""
        return np.unique(cells)

    def patch_grid(self, grid: Grid) -> mx.array:
        """Times, rows and columns of a picture's patches, mx (1, 3), for the vision tower."""
        return mx.array([[1, grid.rows * self._merge, grid.columns * self._merge]])

    def slots(self, ids: list[int]) -> list[int]:
        """Right behind each picture's end token."""
        return [index + 1 for index, token in enumerate(ids) if token == self._end_token]

    def expand(self, ids: list[int], grids: list[Grid]) -> list[int]:
        """One image token per cell."""
        waiting = iter(grids)
        return [
            token
            for given in ids
            for token in ([given] * next(waiting).cells if given == self._image_token else [given])
        ]

    def positions(self, ids: list[int], grids: list[Grid]) -> np.ndarray:
        """Text counts up on all axes. A picture's cells have one time, and count rows and columns from there."""
        parts = []
        start = 0  # the next position
        index = 0  # of the next token
        for grid in grids:
            first = ids.index(self._image_token, index)
            parts.append(self.text_positions(start, first - index))
            start += first - index
            rows, columns = np.divmod(np.arange(grid.cells), grid.columns)
            parts.append(start + np.stack([np.zeros_like(rows), rows, columns]))
            start += max(grid)
            index = first + grid.cells
        parts.append(self.text_positions(start, len(ids) - index))
        return np.concatenate(parts, axis=1).astype(np.int32)

    def text_positions(self, start: int, count: int) -> np.ndarray:
        """The same number on the three axes."""
        return np.tile(np.arange(start, start + count, dtype=np.int32), (AXES, 1))

    def embed(self, ids: list[int], features: mx.array | None = None) -> mx.array:
        """Token embeddings, mx (1, length, hidden)."""
        embeddings = self._language.model.embed_tokens(mx.array([ids]))
        if features is not None:
            embeddings[0, mx.array(self.cells(ids))] = features.astype(embeddings.dtype)
        return embeddings

    def cells(self, ids: list[int]) -> np.ndarray:
        """Indices of the image tokens, (cells,)."""
        return np.flatnonzero(np.array(ids) == self._image_token)

    def chunks(self, ids: list[int], limit: int) -> list[slice]:
        """Every `limit` tokens."""
        return even_chunks(len(ids), limit)

    def forward(
        self,
        ids: list[int],
        embeddings: mx.array,
        positions: np.ndarray,
        cache: list,
        keep: Sequence[int] = (-1,),
    ) -> mx.array:
        """Logits of some tokens, mx (kept, vocabulary)."""
        return self.run_layers(embeddings, positions, cache, keep)

    def step(self, token: mx.array, position: int, cache: list) -> mx.array:
        """Logits behind one token of text, mx (1, vocabulary)."""
        embedding = self._language.model.embed_tokens(token[None])
        return self.run_layers(embedding, self.text_positions(position, 1), cache, [0])

    def run_layers(
        self, embeddings: mx.array, positions: np.ndarray, cache: list, keep: Sequence[int], **inputs: Any
    ) -> mx.array:
        """`forward`, with further inputs of the family's layers by name."""
        for part in cache:
            if isinstance(part, PassCache):
                part.offset = part.tree.held  # Qwen3-VL-MoE cuts its masks by it; no layer counts positions from it
        hidden = self._language.model(
            None, inputs_embeds=embeddings, cache=cache, position_ids=mx.array(positions)[:, None], **inputs
        )
        hidden = hidden[0, mx.array(list(keep))]
        if self._language.args.tie_word_embeddings:
            logits = self._language.model.embed_tokens.as_linear(hidden)
        else:
            logits = self._language.lm_head(hidden)
        return logits.astype(mx.float32)
