"""Some cells of a picture through a Qwen vision tower, in the surroundings that were kept of an older picture.

Patches are in the order the tower runs them in, window by window. Up to the first block that looks at the whole picture
a window depends on its own pixels alone: those with a wanted cell are run whole, the others are what they were. From
there on the wanted cells' patches are queries against the kept keys and values of everything they look at.
Source: mlx_vlm/models/qwen2_5_vl/vision.py and qwen3_vl/vision.py, whose modules are used.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx_vlm.models.base import ensure_fused_sdpa
from mlx_vlm.models.qwen2_5_vl.vision import apply_rotary_pos_emb_vision

from vlm_reuse_node.model.families.base import VisionState
from vlm_reuse_node.model.families.picture_parts import CellPixels
from vlm_reuse_node.model.families.sparse_vision import padded, patches, written


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a picture's cells are in the tower's order.

    order: the cell at each place, (cells,). starts: the first place of each window, and the number of places.
    rotary: angles of each patch, mx (patches, width). added: what is added to each embedded patch, or None.
    """

    order: np.ndarray
    starts: np.ndarray
    rotary: mx.array
    added: mx.array | None = None

    def window_of(self, places: np.ndarray) -> np.ndarray:
        """The number of each place's window."""
        return np.searchsorted(self.starts, places, side='right') - 1


@dataclass(frozen=True, eq=False)
class CellSelection:
    """The places to be encoded: `asked`, padded; before them `inside`, all of the windows they are in.

    lengths: places of each of these windows.
    """

    asked: np.ndarray
    inside: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, layout: Layout, cells: np.ndarray, by_window: bool) -> 'CellSelection':
        """Find cells, at least one; by_window: whether the first blocks look at windows."""
        asked = padded(np.flatnonzero(np.isin(layout.order, cells)), len(layout.order))
        if not by_window:
            return cls(asked, asked, np.array([len(asked)]))
        windows = np.unique(layout.window_of(asked))
        first, last = layout.starts[windows], layout.starts[windows + 1]
        return cls(asked, np.concatenate([np.arange(*span) for span in zip(first, last)]), last - first)


def read_cells(layout: Layout, cells: np.ndarray, first: int) -> np.ndarray:
    """The cells whose pixels `encode_cells` reads to encode these, ascending."""
    return np.unique(layout.order[CellSelection.of(layout, cells, by_window=first > 0).inside])


def encode_cells(
    tower,
    layout: Layout,
    pixels: mx.array | CellPixels,
    cells: np.ndarray,
    kept: VisionState | None,
    first: int,
    levels: dict[int, Callable],
) -> VisionState:
    """See `families.base.Family.encode_cells`.

    first: the first block that looks at the whole picture. levels: the merger behind each block that has one.
    """
    wanted, each = CellSelection.of(layout, cells, by_window=first > 0), tower.spatial_merge_size**2
    # 1. Whole windows, each by itself.
    rows = patches(wanted.inside, each)
    if not isinstance(pixels, CellPixels):
        pixels = CellPixels(pixels, np.arange(len(layout.order)))
    hidden = tower.patch_embed(pixels.of(layout.order[wanted.inside], each))
    if layout.added is not None:
        hidden = hidden + layout.added[rows]
    bounds = mx.array(np.append(0, np.cumsum(wanted.lengths * each)))
    for block in tower.blocks[:first]:
        hidden = block(hidden, cu_seqlens=bounds, rotary_pos_emb=layout.rotary[rows])
    # 2. The wanted cells alone, in the picture.
    going_on = patches(np.searchsorted(wanted.inside, wanted.asked), each) if first else None
    windows, everything = _window_spans(layout, wanted.asked, each), [(slice(None), slice(None))]
    merged, blocks = [], []
    for index, block in enumerate(tower.blocks[first:], first):
        spans = windows if index not in getattr(tower, 'fullatt_block_indexes', [index]) else everything
        hidden, keys_values = _run_block(
            block, hidden, layout.rotary[rows], rows, kept and kept.blocks[len(blocks)], spans, going_on
        )
        blocks.append(keys_values)
        if going_on is not None:
            rows, going_on = patches(wanted.asked, each), None
        if index in levels:
            merged.append(levels[index](hidden))
    # 3. Their features among the others'.
    features = mx.concatenate([tower.merger(hidden), *merged], axis=-1)
    if kept is None:
        features = features[mx.array(np.argsort(layout.order))]
    else:
        features = written(kept.features, mx.array(layout.order[wanted.asked]), features)
    return VisionState(features, tuple(blocks))


def _window_spans(layout, asked, each):
    """Which queries look at which keys in a block that looks at windows: patches of `asked`, patches of all places."""
    windows = layout.window_of(asked)
    spans = []
    for window in np.unique(windows):
        queries = np.searchsorted(windows, [window, window + 1]) * each
        keys = layout.starts[window : window + 2] * each
        spans.append((slice(*queries.tolist()), slice(*keys.tolist())))
    return spans


def _run_block(block, hidden, angles, rows, kept, spans, going_on):
    """Run one block on patches: those that go on, mx (patches, width), and keys and values of the whole picture.

    angles, rows: of these patches, rows among all. kept: keys and values of all, None when these are all of them.
    going_on: which of these patches do, None: all.
    """
    attention = block.attn
    states = attention.qkv(block.norm1(hidden)).reshape(len(hidden), 3, attention.num_heads, -1)
    queries, keys, values = (states[:, part] for part in range(3))
    queries, keys = (apply_rotary_pos_emb_vision(part[None], angles)[0] for part in (queries, keys))
    queries, keys, values = (part.transpose(1, 0, 2) for part in (queries, keys, values))
    if kept is not None:
        keys, values = written(kept[0], rows, keys, axis=1), written(kept[1], rows, values, axis=1)
    if going_on is not None:
        hidden, queries = hidden[going_on], queries[:, going_on]
    seen = mx.concatenate(
        [
            ensure_fused_sdpa(queries[None, :, mine], keys[None, :, theirs], values[None, :, theirs], attention.scale)
            for mine, theirs in spans
        ],
        axis=2,
    )
    hidden = hidden + attention.proj(seen[0].transpose(1, 0, 2).reshape(len(hidden), -1))
    return hidden + block.mlp(block.norm2(hidden)), (keys, values)
