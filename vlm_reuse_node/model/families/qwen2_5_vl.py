"""Qwen2.5-VL: square cells of 28 px, M-RoPE in three blocks, a flat KV cache.

Source: mlx_vlm/models/qwen2_5_vl.
"""

from functools import cache

import numpy as np

from vlm_reuse_node.model.families import qwen_blocks
from vlm_reuse_node.model.families.qwen_vision import QwenFamily
from vlm_reuse_node.model.families.sparse_vision import patches


class Family(QwenFamily):
    """See `families.base.Family`."""

    takes_mask = True
    encodes_cells = True

    def __init__(self, model, processor):
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        super().__init__(model, processor)
        self._layout, self._first = cache(self._windows), min(self._vision.fullatt_block_indexes)

    def encode(self, pixels, grid):
        """Vision features, mx (cells, hidden)."""
        return self._vision(pixels, self.patches(grid), output_hidden_states=False)

    def encode_cells(self, pixels, grid, cells, kept):
        """Exact for a window up to the first block of full attention, from there on in the kept surroundings."""
        return qwen_blocks.encode_cells(self._vision, self._layout(grid), pixels, cells, kept, self._first, {})

    def read_cells(self, grid, cells):
        """All of the windows they are in."""
        return qwen_blocks.read_cells(self._layout(grid), cells, self._first)

    def _windows(self, grid):
        """Cells window by window; those at the right and bottom edges may be smaller."""
        side = self._vision.window_size // self.cell_px
        rows, columns = np.divmod(np.arange(grid.cells), grid.columns)
        order = np.lexsort((columns, rows, columns // side, rows // side))
        windows = (rows // side * grid.columns + columns // side)[order]
        starts = np.append(np.flatnonzero(np.diff(windows, prepend=-1)), grid.cells)
        angles = self._vision.rot_pos_emb(self.patches(grid))
        return qwen_blocks.Layout(order, starts, angles[patches(order, self._merge**2)])
