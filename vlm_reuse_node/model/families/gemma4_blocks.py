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

"""Encodes some cells of a picture with Gemma 4's vision tower; the other cells are those of an older picture.

Patches follow each other cell by cell. Every block looks at the whole picture: the patches of the cells to encode are
queries, and look at the older picture's keys and values, in which their own are replaced.
Source: mlx_vlm/models/gemma4/vision.py, whose modules are used.
"""

from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.models.base import ensure_fused_sdpa
from mlx_vlm.models.gemma4.vision import apply_multidimensional_rope

from vlm_reuse_node.model.families.base import Grid, KeysValues, VisionState
from vlm_reuse_node.model.families.sparse_vision import padded, patch_rows, recorded, written


def encode_all_cells(model: Any, pixels: mx.array, grid: Grid, side: int) -> VisionState:
    """Run mlx-vlm's own tower, and keep the keys and values that it computes on its way.

    pixels: of the whole picture, mx (1, 3, height, width). side: patches along a side of a cell.
    """
    attentions = [layer.self_attn for layer in model.vision_tower.encoder.layers]
    with recorded((attention, name) for attention in attentions for name in ('k_proj', 'v_proj')) as projected:
        features = model.encode_image(pixels)[0]
    places = _places(grid, np.arange(grid.cells), side)
    rows = mx.array(places[:, 1] * grid.columns * side + places[:, 0])  # the tower's are row by row, padding last
    blocks = []
    for index, attention in enumerate(attentions):
        keys, values = (
            part[:, rows].reshape(1, len(places), -1, attention.head_dim)
            for part in projected[2 * index : 2 * index + 2]
        )
        blocks.append(_keys_values(attention, keys, values, mx.array(places)[None]))
    return VisionState(features, tuple(blocks))


def encode_cells(
    model: Any, pixels: mx.array, grid: Grid, cells: np.ndarray, older: VisionState, side: int
) -> VisionState:
    """See `families.base.Family.encode_cells`.

    pixels: of the whole picture, mx (1, 3, height, width). side: patches along a side of a cell.
    """
    tower = model.vision_tower
    cells = padded(cells, grid.cells)
    rows = patch_rows(cells, side**2)
    places = _places(grid, cells, side)
    embedded = _embedded(tower, pixels)  # patches row by row
    hidden = embedded[:, mx.array(places[:, 1] * grid.columns * side + places[:, 0])]
    blocks: list[KeysValues] = []
    for layer, old in zip(tower.encoder.layers, older.blocks):
        hidden, keys_values = _run_layer(layer, hidden, mx.array(places)[None], rows, old)
        blocks.append(keys_values)
    pooled = hidden.reshape(len(cells), side**2, -1).astype(mx.float32).mean(axis=1).astype(hidden.dtype)
    pooled = pooled * tower.pooler.root_hidden_size
    if tower.config.standardize:
        pooled = (pooled - tower.std_bias) * tower.std_scale
    features = written(older.features, mx.array(cells), model.embed_vision(pooled[None])[0])
    return VisionState(features, tuple(blocks))


def _places(grid: Grid, cells: np.ndarray, side: int) -> np.ndarray:
    """Column and row of each patch of these cells, (patches, 2) int32."""
    rows, columns = np.divmod(cells, grid.columns)
    down, right = np.divmod(np.arange(side**2), side)
    places = np.stack([columns[:, None] * side + right, rows[:, None] * side + down], axis=-1)
    return places.reshape(-1, 2).astype(np.int32)


def _embedded(tower: Any, pixels: mx.array) -> mx.array:
    """All patches of a picture, row by row: mx (1, patches, width)."""
    height, width = pixels.shape[-2:]
    places, is_padding, _ = tower._patch_positions_single(height, width, (height * width) // tower.patch_size**2)
    return tower.patch_embedder(pixels, mx.array(places)[None], mx.array(is_padding)[None])


def _run_layer(
    layer: Any, hidden: mx.array, places: mx.array, rows: mx.array, older: KeysValues
) -> tuple[mx.array, KeysValues]:
    """Run one layer on some patches; return them, mx (1, patches, width), and the whole picture's keys and values.

    places: column and row of each of these patches, mx (1, patches, 2). rows: of these, among all patches of the
    picture. older: the older picture's keys and values.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    queries, keys, values = (
        part(normed).reshape(*hidden.shape[:2], -1, attention.head_dim)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    queries = apply_multidimensional_rope(attention.q_norm(queries), places, attention.rope_base_frequency)
    keys, values = (
        written(old, rows, new, axis=1) for old, new in zip(older, _keys_values(attention, keys, values, places))
    )
    seen = ensure_fused_sdpa(queries.transpose(0, 2, 1, 3), keys[None], values[None], scale=1.0)
    seen = attention.o_proj(seen.transpose(0, 2, 1, 3).reshape(*hidden.shape[:2], -1))
    hidden = hidden + layer.post_attention_layernorm(seen)
    out = layer.mlp(layer.pre_feedforward_layernorm(hidden))
    return hidden + layer.post_feedforward_layernorm(out), (keys, values)


def _keys_values(attention: Any, keys: mx.array, values: mx.array, places: mx.array) -> KeysValues:
    """What the queries look at, mx (heads, patches, head width), of projected keys and values, mx (1, patches, ...)."""
    turned = apply_multidimensional_rope(attention.k_norm(keys), places, attention.rope_base_frequency)
    return turned[0].transpose(1, 0, 2), attention._v_norm(values)[0].transpose(1, 0, 2)
