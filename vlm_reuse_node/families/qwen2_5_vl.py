"""Qwen2.5-VL: square cells of 28 px, M-RoPE with three axes (time, row, column), a flat KV cache.

Source: mlx_vlm/models/qwen2_5_vl. Its `LanguageModel.__call__` keeps positions in attributes (`_rope_deltas`,
`_position_ids`) that a second session would inherit, so this file calls the layers below it with positions given.
"""

import mlx.core as mx
import numpy as np
from PIL import Image

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.families.base import even_chunks, Grid

AXES = 3


class Family:
    """See `families.base.Family`."""

    def __init__(self, model, processor):
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        self._vision = model.vision_tower
        self._language = model.language_model
        self._image_processor = processor.image_processor
        self._merge = model.config.vision_config.spatial_merge_size
        self._image_token = model.config.image_token_id
        self._end_token = model.config.vision_end_token_id
        self.cell_px = model.config.vision_config.patch_size * self._merge

    def prepare(self, rgb):
        """Pixel values mx (patches, patch values) and the grid."""
        try:
            inputs = self._image_processor(images=[Image.fromarray(rgb)])
        except (ValueError, ZeroDivisionError) as error:
            height, width = rgb.shape[:2]
            raise ImageError('size', f'The model cannot take a picture of {width} x {height} pixels: {error}. '
                                     f'Expected sides of at least one pixel and a ratio below 200.') from error
        _, rows, columns = (int(side) for side in inputs['image_grid_thw'][0])
        dtype = self._vision.patch_embed.proj.weight.dtype
        return mx.array(inputs['pixel_values']).astype(dtype), Grid(rows // self._merge, columns // self._merge)

    def encode(self, pixels, grid):
        """Vision features, mx (cells, hidden)."""
        patches = mx.array([[1, grid.rows * self._merge, grid.columns * self._merge]])
        return self._vision(pixels, patches, output_hidden_states=False)

    def slots(self, ids):
        """Right behind each picture's end token."""
        return [index + 1 for index, token in enumerate(ids) if token == self._end_token]

    def expand(self, ids, grids):
        """One image token per cell."""
        waiting = iter(grids)
        return [token for given in ids
                for token in ([given] * next(waiting).cells if given == self._image_token else [given])]

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
            cells = np.flatnonzero(np.array(ids) == self._image_token)
            embeddings[0, mx.array(cells)] = features.astype(embeddings.dtype)
        return embeddings

    def chunks(self, ids, limit):
        """Every `limit` tokens."""
        return even_chunks(len(ids), limit)

    def forward(self, ids, embeddings, positions, cache, keep=1):
        """Logits of the last `keep` tokens, mx (keep, vocabulary)."""
        hidden = self._language.model(None, inputs_embeds=embeddings, cache=cache,
                                      position_ids=mx.array(positions)[:, None])
        hidden = hidden[0, -keep:]
        if self._language.args.tie_word_embeddings:
            logits = self._language.model.embed_tokens.as_linear(hidden)
        else:
            logits = self._language.lm_head(hidden)
        return logits.astype(mx.float32)
