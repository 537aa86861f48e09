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

"""Encodes some cells of a picture with a Qwen vision tower; the other cells are those of an older picture.

Patches are in the order in which the tower runs them, window by window. Up to the first block that looks at the whole
picture, a window depends on its own pixels alone: windows with a cell to encode run whole, the others do not run. From
there on only the patches of the cells to encode are queries. They look at the older picture's keys and values, in which
their own are replaced.
Source: vision.py in mlx_vlm/models/qwen2_vl, qwen2_5_vl and qwen3_vl, whose modules are used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.models.base import ensure_fused_sdpa
from mlx_vlm.models.qwen2_5_vl.vision import apply_rotary_pos_emb_vision

from vlm_reuse_node.model.families.base import KeysValues, VisionState
from vlm_reuse_node.model.families.picture_parts import CellPixels
from vlm_reuse_node.model.families.sparse_vision import padded, patch_rows, recorded, written

# Which queries look at which keys in one block.
Spans = list[tuple[slice, slice]]
WHOLE_PICTURE: Spans = [(slice(None), slice(None))]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the cells of a picture are in the tower's order.

    order: the cell at each place, (cells,). starts: the first place of each window, and the number of places.
    rotary: angles of each patch, mx (patches, width). added: position embeddings, mx (patches, width), or None.
    """

    order: np.ndarray
    starts: np.ndarray
    rotary: mx.array
    added: mx.array | None = None

    def window_of(self, places: np.ndarray) -> np.ndarray:
        """Return the number of each place's window."""
        return np.searchsorted(self.starts, places, side='right') - 1


@dataclass(frozen=True, eq=False)
class CellSelection:
    """Which places a vision pass runs.

    places: of the cells to encode, padded. window_places: all places of the windows that hold them, ascending.
    window_lengths: places of each of these windows.
    """

    places: np.ndarray
    window_places: np.ndarray
    window_lengths: np.ndarray

    @classmethod
    def of(cls, layout: Layout, cells: np.ndarray, by_window: bool) -> 'CellSelection':
        """Select cells, at least one. by_window: whether the first blocks look at windows."""
        places = padded(np.flatnonzero(np.isin(layout.order, cells)), len(layout.order))
        if not by_window:
            return cls(places, places, np.array([len(places)]))
        windows = np.unique(layout.window_of(places))
        first = layout.starts[windows]
        last = layout.starts[windows + 1]
        return cls(places, np.concatenate([np.arange(*bounds) for bounds in zip(first, last)]), last - first)


def read_cells(layout: Layout, cells: np.ndarray, first: int) -> np.ndarray:
    """Return the cells whose pixels `encode_cells` needs to encode these, ascending."""
    return np.unique(layout.order[CellSelection.of(layout, cells, by_window=first > 0).window_places])


def encode_all_cells(tower: Any, layout: Layout, encode: Callable[[], mx.array], first: int) -> VisionState:
    """Let mlx-vlm's own tower run, and keep the keys and values that it computes on its way.

    encode: runs the tower on the whole picture, returns its features. first: see `encode_cells`.
    """
    attentions = [block.attn for block in tower.blocks[first:]]
    with recorded((attention, 'qkv') for attention in attentions) as projected:
        features = encode()
    blocks = []
    for attention, states in zip(attentions, projected):
        states = states.reshape(len(states), 3, attention.num_heads, -1)
        keys = apply_rotary_pos_emb_vision(states[None, :, 1], layout.rotary)[0]
        blocks.append((keys.transpose(1, 0, 2), states[:, 2].transpose(1, 0, 2)))
    return VisionState(features, tuple(blocks))


def encode_cells(
    tower: Any,
    layout: Layout,
    pixels: mx.array | CellPixels,
    cells: np.ndarray,
    older: VisionState,
    first: int,
    levels: Mapping[int, Callable[[mx.array], mx.array]],
) -> VisionState:
    """See `families.base.Family.encode_cells`.

    first: the first block that looks at the whole picture. levels: the merger behind each block that has one.
    """
    selection = CellSelection.of(layout, cells, by_window=first > 0)
    per_cell = tower.spatial_merge_size**2
    # 1. Whole windows, each by itself.
    hidden = _embedded(tower, layout, pixels, selection.window_places)
    rows = patch_rows(selection.window_places, per_cell)
    bounds = mx.array(np.append(0, np.cumsum(selection.window_lengths * per_cell)))
    for block in tower.blocks[:first]:
        hidden = block(hidden, cu_seqlens=bounds, rotary_pos_emb=layout.rotary[rows])
    # 2. The cells to encode, in the picture. The first block here takes keys and values of whole windows.
    queries = patch_rows(np.searchsorted(selection.window_places, selection.places), per_cell) if first else None
    windows = _window_spans(layout, selection.places, per_cell)
    merged = []
    blocks: list[KeysValues] = []
    for index, block in enumerate(tower.blocks[first:], first):
        spans = windows if index not in getattr(tower, 'fullatt_block_indexes', [index]) else WHOLE_PICTURE
        old = older.blocks[len(blocks)]
        hidden, keys_values = _run_block(block, hidden, layout.rotary[rows], rows, old, spans, queries)
        blocks.append(keys_values)
        if queries is not None:
            rows = patch_rows(selection.places, per_cell)
            queries = None
        if index in levels:
            merged.append(levels[index](hidden))
    # 3. Their features among those of the other cells.
    features = mx.concatenate([tower.merger(hidden), *merged], axis=-1)
    features = written(older.features, mx.array(layout.order[selection.places]), features)
    return VisionState(features, tuple(blocks))


def _embedded(tower: Any, layout: Layout, pixels: mx.array | CellPixels, places: np.ndarray) -> mx.array:
    """The embedded patches at these places, mx (patches, width)."""
    per_cell = tower.spatial_merge_size**2
    if not isinstance(pixels, CellPixels):
        pixels = CellPixels(pixels, np.arange(len(layout.order)))
    hidden = tower.patch_embed(pixels.of(layout.order[places], per_cell))
    return hidden if layout.added is None else hidden + layout.added[patch_rows(places, per_cell)]


def _window_spans(layout: Layout, places: np.ndarray, per_cell: int) -> Spans:
    """The spans of a block that looks at windows: queries are the patches at `places`, keys those of all places."""
    windows = layout.window_of(places)
    spans = []
    for window in np.unique(windows):
        queries = np.searchsorted(windows, [window, window + 1]) * per_cell
        keys = layout.starts[window : window + 2] * per_cell
        spans.append((slice(*queries.tolist()), slice(*keys.tolist())))
    return spans


def _run_block(
    block: Any,
    hidden: mx.array,
    angles: mx.array,
    rows: mx.array,
    older: KeysValues,
    spans: Spans,
    queries: mx.array | None,
) -> tuple[mx.array, KeysValues]:
    """Run one block; return the patches that are queries, mx (queries, width), and the whole picture's keys and values.

    hidden: of some patches, mx (patches, width). angles: of these. rows: of these, among all patches of the picture.
    older: the older picture's keys and values. queries: which of `hidden` are
    queries; None: all.
    """
    attention = block.attn
    states = attention.qkv(block.norm1(hidden)).reshape(len(hidden), 3, attention.num_heads, -1)
    turned = [apply_rotary_pos_emb_vision(states[None, :, part], angles)[0].transpose(1, 0, 2) for part in (0, 1)]
    asking, keys, values = *turned, states[:, 2].transpose(1, 0, 2)  # mx (heads, patches, head width)
    keys, values = (written(old, rows, new, axis=1) for old, new in zip(older, (keys, values)))
    if queries is not None:
        hidden = hidden[queries]
        asking = asking[:, queries]
    seen = mx.concatenate(
        [
            ensure_fused_sdpa(asking[None, :, mine], keys[None, :, theirs], values[None, :, theirs], attention.scale)
            for mine, theirs in spans
        ],
        axis=2,
    )
    hidden = hidden + attention.proj(seen[0].transpose(1, 0, 2).reshape(len(hidden), -1))
    return hidden + block.mlp(block.norm2(hidden)), (keys, values)
