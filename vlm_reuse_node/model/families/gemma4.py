"""Gemma 4: sliding and full attention layers, pictures that look both ways, and in the E models inputs for every layer.

Source: mlx_vlm/models/gemma4. Its `Gemma4TextModel.__call__` makes the two-way mask for square masks only, and cuts the
per-layer inputs by the first cache's offset. Both are wrong behind a cache that holds tokens, so this file calls the
layers below it, with masks and per-layer inputs made for exactly the tokens of the call.
"""

import mlx.core as mx
import numpy as np
from mlx_vlm.models.base import ensure_fused_sdpa
from mlx_vlm.models.gemma4.vision import apply_multidimensional_rope
from PIL import Image

from vlm_reuse_node.errors import ImageError, ModelError
from vlm_reuse_node.model.families.base import Grid, VisionState, even_chunks
from vlm_reuse_node.model.families.sparse_vision import padded, patches, written
from vlm_reuse_node.model.kv_rewrite import RewrittenApart, visible

# What stands for a picture's token where the E models look up a token's inputs for every layer.
NO_TOKEN = 0


class Family:
    """See `families.base.Family`."""

    takes_mask = False
    encodes_cells = True

    def __init__(self, model, processor):
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        self._model, self._text = model, model.language_model.model
        self._image_processor = processor.image_processor
        config = model.config
        self._image_token, self._begin_token, self._end_token = (
            config.image_token_id,
            config.boi_token_id,
            config.eoi_token_id,
        )
        self._two_way = config.text_config.use_bidirectional_attention == 'vision'
        self._window = config.text_config.sliding_window
        self._pooled = config.vision_config.pooling_kernel_size
        self.cell_px = config.vision_config.patch_size * self._pooled

    def prepare(self, rgb):
        """Pixel values mx (1, 3, height, width) of whole cells, and the grid."""
        height, width = rgb.shape[:2]
        try:
            inputs, (cells,) = self._image_processor([Image.fromarray(rgb)])
        except (ValueError, ZeroDivisionError) as error:
            raise ImageError(
                'size',
                f'The model cannot take a picture of {width} x {height} pixels: {error}. '
                f'Expected sides of at least one pixel.',
            ) from error
        pixels = inputs['pixel_values']
        grid = Grid(*(side // self.cell_px for side in pixels.shape[-2:]))
        if grid.cells != cells:
            raise ModelError(
                f"The model's image processor counts {cells} tokens in a picture of {width} x {height} "
                f'pixels, its vision tower {grid.cells}; expected the same patch_size and '
                f'pooling_kernel_size in config.json and processor_config.json.'
            )
        return mx.array(pixels), grid

    def prepare_cells(self, rgb, grid, cells):
        """Of the whole picture."""
        return self.prepare(rgb)[0]

    def encode(self, pixels, grid):
        """Vision features, mx (cells, hidden)."""
        return self._model.encode_image(pixels)[0]

    def encode_cells(self, pixels, grid, cells, kept):
        """In every block in the kept surroundings; patches cell by cell."""
        tower, each = self._model.vision_tower, self._pooled**2
        asked = padded(cells, grid.cells)
        rows, places = patches(asked, each), self._places(grid, asked)
        hidden = self._embedded(pixels)[:, mx.array(places[:, 1] * grid.columns * self._pooled + places[:, 0])]
        blocks = []
        for layer in tower.encoder.layers:
            hidden, keys_values = _run_vision_layer(
                layer, hidden, mx.array(places)[None], rows, kept and kept.blocks[len(blocks)]
            )
            blocks.append(keys_values)
        pooled = hidden.reshape(len(asked), each, -1).astype(mx.float32).mean(axis=1).astype(hidden.dtype)
        pooled = pooled * tower.pooler.root_hidden_size
        if tower.config.standardize:
            pooled = (pooled - tower.std_bias) * tower.std_scale
        features = self._model.embed_vision(pooled[None])[0]
        return VisionState(
            features if kept is None else written(kept.features, mx.array(asked), features), tuple(blocks)
        )

    def _places(self, grid, cells):
        """Column and row of each patch of these cells, (patches, 2)."""
        rows, columns = np.divmod(cells, grid.columns)
        down, right = np.divmod(np.arange(self._pooled**2), self._pooled)
        return (
            np.stack([columns[:, None] * self._pooled + right, rows[:, None] * self._pooled + down], axis=-1)
            .reshape(-1, 2)
            .astype(np.int32)
        )

    def _embedded(self, pixels):
        """All patches of a picture, row by row: mx (1, patches, width)."""
        tower = self._model.vision_tower
        height, width = pixels.shape[-2:]
        places, is_padding, _ = tower._patch_positions_single(height, width, (height * width) // tower.patch_size**2)
        return tower.patch_embedder(pixels, mx.array(places)[None], mx.array(is_padding)[None])

    def slots(self, ids):
        """Right behind each picture's end token, which a prompt has once it is expanded."""
        last = self._end_token if self._end_token in ids else self._image_token
        return [index + 1 for index, token in enumerate(ids) if token == last]

    def expand(self, ids, grids):
        """One image token per cell, between a begin and an end token."""
        waiting = iter(grids)
        expanded = []
        for token in ids:
            if token == self._image_token:
                expanded += [self._begin_token, *[token] * next(waiting).cells, self._end_token]
            else:
                expanded.append(token)
        return expanded

    def positions(self, ids, grids):
        """Pictures count like text."""
        return self.text_positions(0, len(ids))

    def text_positions(self, start, count):
        """One axis."""
        return np.arange(start, start + count, dtype=np.int32)[None]

    def embed(self, ids, features=None):
        """Token embeddings in the model's scale, mx (1, length, hidden); features come as they are."""
        embeddings = self._text.embed_tokens(mx.array([ids])) * self._text.embed_scale
        if features is not None:
            embeddings[0, mx.array(self.cells(ids))] = features.astype(embeddings.dtype)
        return embeddings

    def cells(self, ids):
        """Where the pictures' tokens are, (cells,)."""
        return np.flatnonzero(np.array(ids) == self._image_token)

    def chunks(self, ids, limit):
        """Every `limit` tokens; before a picture that would be cut, and behind one of more than `limit`."""
        if not self._two_way:
            return even_chunks(len(ids), limit)
        cuts = [0]
        while cuts[-1] < len(ids):
            cut = min(cuts[-1] + limit, len(ids))
            if cut < len(ids) and ids[cut - 1] == ids[cut] == self._image_token:
                first, last = self._picture_around(ids, cut)
                cut = first if first > cuts[-1] else last
            cuts.append(cut)
        return [slice(first, last) for first, last in zip(cuts, cuts[1:])]

    def forward(self, ids, embeddings, positions, cache, keep=1):
        """Logits of the last `keep` tokens, mx (keep, vocabulary).

        The layers take positions from their caches. Raises ModelError when `positions` are others.
        """
        self._check_positions(positions, cache)
        hidden, masks, layer_inputs = embeddings, self._masks(ids, cache), self._layer_inputs(ids, embeddings)
        seen, dropped = {}, 0  # layer -> its keys and values, and the position of its first query
        for index, layer in enumerate(self._text.layers):
            if index == self._text.first_kv_shared_layer_idx:
                # The layers from here on have no cache: only the tokens that are kept need them.
                dropped = max(len(ids) - keep, 0)
                hidden = hidden[:, dropped:]
                masks = {kind: _last_rows(mask, dropped) for kind, mask in masks.items()}
            keys_values, start = seen.get(self._text.previous_kvs[index], (None, 0))
            hidden, *seen[index] = layer(
                hidden,
                masks[layer.layer_type],
                cache[index] if index < len(cache) else None,
                per_layer_input=None if layer_inputs is None else layer_inputs[:, dropped:, index],
                shared_kv=keys_values,
                offset=start + dropped,
            )
        return self._model.language_model.logits_from_hidden(self._text.norm(hidden[0, -keep:])).astype(mx.float32)

    def rewrite(self, ids, embeddings, positions, rows, picture, cache):
        """Every token a sequence of its own: that is how the layers take positions that do not follow each other.

        The layers without a cache are not needed.
        """
        inputs, hidden = self._layer_inputs(ids, embeddings), embeddings.transpose(1, 0, 2)  # (tokens, 1, hidden)
        keys = np.arange(cache[0].offset)
        past, apart = visible(rows, len(keys)), rows[:, None] - keys
        together = self._two_way & np.isin(rows, picture)[:, None] & np.isin(keys, picture)
        masks = {'full_attention': past | together, 'sliding_attention': past & (apart < self._window) | together}
        for index, (layer, part) in enumerate(zip(self._text.layers, cache)):
            hidden, *_ = layer(
                hidden,
                mx.array(masks[layer.layer_type])[:, None, None],
                RewrittenApart(part, rows),
                per_layer_input=None if inputs is None else inputs[0, :, None, index],
            )

    def _picture_around(self, ids, index):
        """First token of the picture that index is in, and right behind its last."""
        first = last = index
        while first > 0 and ids[first - 1] == self._image_token:
            first -= 1
        while last < len(ids) and ids[last] == self._image_token:
            last += 1
        return first, last

    def _check_positions(self, positions, cache):
        held = sorted({entry.offset for entry in cache})
        expected = self.text_positions(held[0], positions.shape[1])
        if len(held) > 1 or not np.array_equal(positions, expected):
            raise ModelError(
                f'The caches hold {held} tokens and the next one is given position {positions[0, 0]}; '
                f'expected positions that go on where all the caches end. Build the state again.'
            )

    def _masks(self, ids, cache):
        """What the tokens of a call may attend to, for each type of layer.

        A mask is mx (tokens, keys) bool, the call's own keys last; or 'causal' or None, as the layers take them.
        """
        pictures = self._picture_numbers(ids) if self._two_way and len(ids) > 1 else None
        masks = {}
        for layer, entry in zip(self._text.layers, cache):
            if layer.layer_type not in masks:
                window = self._window if layer.layer_type == 'sliding_attention' else None
                mask = entry.make_mask(len(ids), window_size=window, return_array=pictures is not None)
                masks[layer.layer_type] = mask if pictures is None else _with_two_way(mask, pictures)
        return masks

    def _picture_numbers(self, ids):
        """Which picture each token belongs to, (length,); -1 for text. None when all are text."""
        cells = np.array(ids) == self._image_token
        if not cells.any():
            return None
        begins = cells & ~np.append(False, cells[:-1])
        return np.where(cells, np.cumsum(begins), -1)

    def _layer_inputs(self, ids, embeddings):
        """Inputs of the E models' layers, of exactly these tokens: mx (1, length, layers, width). None elsewhere."""
        if not self._text.hidden_size_per_layer_input:
            return None
        tokens = mx.array([[NO_TOKEN if token == self._image_token else token for token in ids]])
        return self._text.project_per_layer_inputs(embeddings, self._text.get_per_layer_inputs(tokens))


def _run_vision_layer(layer, hidden, places, rows, kept):
    """Run one vision layer on patches: these, mx (1, patches, width), and keys and values of the whole picture.

    places: column and row of each, mx (1, patches, 2). rows: which of all patches they are. kept: keys and values of
    all, None when these are all of them.
    """
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    queries, keys, values = (
        part(normed).reshape(*hidden.shape[:2], -1, attention.head_dim)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    queries, keys = (
        apply_multidimensional_rope(part, places, attention.rope_base_frequency)
        for part in (attention.q_norm(queries), attention.k_norm(keys))
    )
    queries, keys, values = (part[0].transpose(1, 0, 2) for part in (queries, keys, attention._v_norm(values)))
    if kept is not None:
        keys, values = written(kept[0], rows, keys, axis=1), written(kept[1], rows, values, axis=1)
    seen = ensure_fused_sdpa(queries[None], keys[None], values[None], scale=1.0)
    seen = attention.o_proj(seen.transpose(0, 2, 1, 3).reshape(*hidden.shape[:2], -1))
    hidden = hidden + layer.post_attention_layernorm(seen)
    out = layer.mlp(layer.pre_feedforward_layernorm(hidden))
    return hidden + layer.post_feedforward_layernorm(out), (keys, values)


def _with_two_way(mask, pictures):
    """Let the tokens of one picture see each other, window or not."""
    together = mx.array((pictures[:, None] == pictures) & (pictures >= 0))
    older = mask.shape[1] - len(pictures)
    return mx.concatenate([mask[:, :older], mask[:, older:] | together], axis=1)


def _last_rows(mask, dropped):
    return mask[dropped:] if isinstance(mask, mx.array) else mask
