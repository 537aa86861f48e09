"""Qwen3-VL: square cells of 32 px, interleaved M-RoPE, DeepStack, a flat KV cache; serves the mixture of experts too.

Source: mlx_vlm/models/qwen3_vl and qwen3_vl_moe. With DeepStack the vision tower gives each cell one vector for the
prompt and one more, a level, for each of the first language layers; they are carried side by side. mlx-vlm drops the
levels when features come from its cache (`cached_image_features`), or when their number is not that of the mask: this
file hands every call the levels of exactly its own tokens.
"""

from functools import cache

import mlx.core as mx
import numpy as np

from vlm_reuse_node.model.families import qwen_blocks
from vlm_reuse_node.model.families.qwen_vision import QwenFamily


class Family(QwenFamily):
    """See `families.base.Family`. The width of features is hidden * (1 + levels), that of text alone is hidden."""

    takes_mask = True
    encodes_cells = True

    def __init__(self, model, processor):
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        super().__init__(model, processor)
        self._layout = cache(self._one_window)

    def encode(self, pixels, grid):
        """Vision features and their levels side by side, mx (cells, hidden * (1 + levels))."""
        features, levels = self._vision(pixels, self.patches(grid))
        return mx.concatenate([features, *levels], axis=-1)

    def encode_cells(self, pixels, grid, cells, kept):
        """In every block in the kept surroundings, levels too."""
        levels = dict(zip(self._vision.deepstack_visual_indexes, self._vision.deepstack_merger_list))
        return qwen_blocks.encode_cells(self._vision, self._layout(grid), pixels, cells, kept, 0, levels)

    def _one_window(self, grid):
        patches = self.patches(grid)
        return qwen_blocks.Layout(
            np.arange(grid.cells),
            np.array([0, grid.cells]),
            self._vision.rot_pos_emb(patches),
            self._vision.fast_pos_embed_interpolate(patches),
        )

    def embed(self, ids, features=None):
        """Token embeddings, mx (1, length, hidden); with features as wide as those, and zeros in the text's levels."""
        embeddings = super().embed(ids)
        if features is None:
            return embeddings
        added = features.shape[-1] - embeddings.shape[-1]
        embeddings = mx.pad(embeddings, ((0, 0), (0, 0), (0, added)))
        embeddings[0, mx.array(self.cells(ids))] = features.astype(embeddings.dtype)
        return embeddings

    def forward(self, ids, embeddings, positions, cache, keep=1, mask=None):
        """Logits of the last `keep` tokens, mx (keep, vocabulary)."""
        hidden = self._language.args.hidden_size
        levels = embeddings.shape[-1] // hidden - 1
        cells = self.cells(ids)
        if not levels or not cells.size:
            return self.run_layers(embeddings[..., :hidden], positions, cache, keep, mask=mask)
        first, *rest = mx.split(embeddings, 1 + levels, axis=-1)
        visual = np.isin(np.arange(len(ids)), cells)
        return self.run_layers(
            first,
            positions,
            cache,
            keep,
            mask=mask,
            visual_pos_masks=visual[None],
            deepstack_visual_embeds=[level[0, mx.array(cells)] for level in rest],
        )
