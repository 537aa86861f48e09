"""What the Qwen families share: cells of patches, one image token per cell, M-RoPE with three axes (time, row, column).

Source: mlx_vlm/models/qwen2_5_vl, qwen3_vl and qwen3_5. Their `LanguageModel.__call__` keeps positions in attributes
(`_rope_deltas`, `_position_ids`) that a second session would inherit, so this file calls the layers below it with
positions given.
"""

import copy
import sys
from functools import partial

import mlx.core as mx
import numpy as np
from PIL import Image

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model.families.base import Grid, even_chunks
from vlm_reuse_node.model.families.picture_parts import PictureParts
from vlm_reuse_node.model.kv_rewrite import RewrittenLayer, visible

AXES = 3


class QwenFamily:
    """All of `families.base.Family` but `encode`."""

    takes_mask = False
    encodes_cells = False

    def __init__(self, model, processor):
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        self._vision = model.vision_tower
        self._language = model.language_model
        self._image_processor = processor.image_processor
        self._merge = model.config.vision_config.spatial_merge_size
        self._image_token = model.config.image_token_id
        self._end_token = model.config.vision_end_token_id
        self.cell_px = model.config.vision_config.patch_size * self._merge
        sized = copy.copy(self._image_processor)
        sized.min_pixels, sized.max_pixels = 1, sys.maxsize  # takes a picture as large as it is
        self._parts = PictureParts(self.prepare, partial(self._processed, sized), self.cell_px, self._merge**2)

    def prepare(self, rgb):
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

    def _processed(self, processor, rgb):
        inputs = processor(images=[Image.fromarray(rgb)])
        _, rows, columns = (int(side) for side in inputs['image_grid_thw'][0])
        dtype = self._vision.patch_embed.proj.weight.dtype
        return mx.array(inputs['pixel_values']).astype(dtype), Grid(rows // self._merge, columns // self._merge)

    def prepare_cells(self, rgb, grid, cells):
        """Of the part of the picture that they are in."""
        return self._parts.around(rgb, grid, self.read_cells(grid, cells))

    def read_cells(self, grid, cells):
        """The cells whose pixels it takes to encode these, ascending."""
        return np.unique(cells)

    def patches(self, grid):
        """Patches of a picture as its vision tower counts them: mx (1, 3), time, rows and columns."""
        return mx.array([[1, grid.rows * self._merge, grid.columns * self._merge]])

    def slots(self, ids):
        """Right behind each picture's end token."""
        return [index + 1 for index, token in enumerate(ids) if token == self._end_token]

    def expand(self, ids, grids):
        """One image token per cell."""
        waiting = iter(grids)
        return [
            token
            for given in ids
            for token in ([given] * next(waiting).cells if given == self._image_token else [given])
        ]

    def positions(self, ids, grids):
        """Text counts up on all axes; a picture's cells share the time and count rows and columns from there."""
        parts, start, index = [], 0, 0
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

    def text_positions(self, start, count):
        """The same number on the three axes."""
        return np.tile(np.arange(start, start + count, dtype=np.int32), (AXES, 1))

    def embed(self, ids, features=None):
        """Token embeddings, mx (1, length, hidden)."""
        embeddings = self._language.model.embed_tokens(mx.array([ids]))
        if features is not None:
            embeddings[0, mx.array(self.cells(ids))] = features.astype(embeddings.dtype)
        return embeddings

    def cells(self, ids):
        """Where the pictures' tokens are, (cells,)."""
        return np.flatnonzero(np.array(ids) == self._image_token)

    def chunks(self, ids, limit):
        """Every `limit` tokens."""
        return even_chunks(len(ids), limit)

    def forward(self, ids, embeddings, positions, cache, keep=1, mask=None):
        """Logits of the last `keep` tokens, mx (keep, vocabulary)."""
        return self.run_layers(embeddings, positions, cache, keep, mask=mask)

    def rewrite(self, ids, embeddings, positions, rows, picture, cache):
        """In one forward call, masked by slot order."""
        mask = mx.array(visible(rows, cache[0].offset))
        self.forward(ids, embeddings, positions, [RewrittenLayer(part, rows) for part in cache], mask=mask)

    def run_layers(self, embeddings, positions, cache, keep, **inputs):
        """`forward`, with what else the family's layers take by name."""
        hidden = self._language.model(
            None, inputs_embeds=embeddings, cache=cache, position_ids=mx.array(positions)[:, None], **inputs
        )
        hidden = hidden[0, -keep:]
        if self._language.args.tie_word_embeddings:
            logits = self._language.model.embed_tokens.as_linear(hidden)
        else:
            logits = self._language.lm_head(hidden)
        return logits.astype(mx.float32)
