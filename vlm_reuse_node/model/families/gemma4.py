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

"""Gemma 4: sliding and full attention layers, pictures that look both ways, and in the E models inputs for every layer.

Source: mlx_vlm/models/gemma4. Its `Gemma4TextModel.__call__` makes the two-way mask for square masks only, and cuts the
per-layer inputs by the first cache's offset. Both are wrong behind a cache that holds tokens. So this file calls the
layers below it, and makes masks and per-layer inputs for exactly the tokens of the call.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from vlm_reuse_node.errors import ImageError, ModelError
from vlm_reuse_node.model.families import gemma4_blocks
from vlm_reuse_node.model.families.base import Grid, KeysValues, VisionState, even_chunks
from vlm_reuse_node.model.families.placed_rope import place_ropes
from vlm_reuse_node.model.pass_cache import PassCache

# With this token the E models look up the per-layer inputs of a picture's tokens.
NO_TOKEN = 0

# Which keys the tokens of a call see: mx (tokens, keys) bool, the call's own keys last; or 'causal' or None.
Mask = mx.array | str | None


class Family:
    """See `families.base.Family`."""

    branches = True
    branches_recurrent = False
    marker = None
    one_picture = False
    encodes_cells = True

    def __init__(self, model: Any, processor: Any) -> None:
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        self._model = model
        self._text = model.language_model.model
        place_ropes(model.language_model)
        self._image_processor = processor.image_processor
        config = model.config
        self._image_token = config.image_token_id
        self._begin_token = config.boi_token_id
        self._end_token = config.eoi_token_id
        self.two_way = config.text_config.use_bidirectional_attention == 'vision'
        self._window = config.text_config.sliding_window
        self._pooled = config.vision_config.pooling_kernel_size
        self.cell_px = config.vision_config.patch_size * self._pooled

    def prepare(self, rgb: np.ndarray) -> tuple[mx.array, Grid]:
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

    def prepare_cells(self, rgb: np.ndarray, grid: Grid, cells: np.ndarray) -> mx.array:
        """Pixel values of the whole picture."""
        pixels, _ = self.prepare(rgb)
        return pixels

    def encode(self, pixels: mx.array, grid: Grid) -> mx.array:
        """Vision features, mx (cells, hidden)."""
        return self._model.encode_image(pixels)[0]

    def encode_cells(self, pixels: mx.array, grid: Grid, cells: np.ndarray, older: VisionState | None) -> VisionState:
        """Against the older picture in every block; without one by the tower itself."""
        if older is None:
            return gemma4_blocks.encode_all_cells(self._model, pixels, grid, self._pooled)
        return gemma4_blocks.encode_cells(self._model, pixels, grid, cells, older, self._pooled)

    def slots(self, ids: list[int]) -> list[int]:
        """Right behind each picture's end token; behind its image token in a prompt that is not expanded."""
        last = self._end_token if self._end_token in ids else self._image_token
        return [index + 1 for index, token in enumerate(ids) if token == last]

    def expand(self, ids: list[int], grids: Iterable[Grid]) -> list[int]:
        """One image token per cell, between a begin and an end token."""
        waiting = iter(grids)
        expanded: list[int] = []
        for token in ids:
            if token == self._image_token:
                expanded += [self._begin_token, *[token] * next(waiting).cells, self._end_token]
            else:
                expanded.append(token)
        return expanded

    def positions(self, ids: list[int], grids: list[Grid]) -> np.ndarray:
        """Pictures count like text."""
        return self.text_positions(0, len(ids))

    def text_positions(self, start: int, count: int) -> np.ndarray:
        """Counting up on the one axis."""
        return np.arange(start, start + count, dtype=np.int32)[None]

    def embed(self, ids: list[int], features: mx.array | None = None) -> mx.array:
        """Token embeddings in the model's scale, mx (1, length, hidden); features are not scaled."""
        embeddings = self._embeddings(mx.array([ids]))
        if features is not None:
            embeddings[0, mx.array(self.cells(ids))] = features.astype(embeddings.dtype)
        return embeddings

    def _embeddings(self, tokens: mx.array) -> mx.array:
        """Embeddings of tokens, mx (1, length), in the model's scale: mx (1, length, hidden)."""
        return self._text.embed_tokens(tokens) * self._text.embed_scale

    def cells(self, ids: list[int]) -> np.ndarray:
        """Indices of the image tokens, (cells,)."""
        return np.flatnonzero(np.array(ids) == self._image_token)

    def chunks(self, ids: list[int], limit: int) -> list[slice]:
        """Every `limit` tokens; before a picture that would be cut, and behind one of more than `limit` tokens."""
        if not self.two_way:
            return even_chunks(len(ids), limit)
        cuts = [0]
        while cuts[-1] < len(ids):
            cut = min(cuts[-1] + limit, len(ids))
            if cut < len(ids) and ids[cut - 1] == ids[cut] == self._image_token:
                first, last = self._picture_around(ids, cut)
                cut = first if first > cuts[-1] else last
            cuts.append(cut)
        return [slice(first, last) for first, last in zip(cuts, cuts[1:])]

    def forward(
        self,
        ids: list[int],
        embeddings: mx.array,
        positions: np.ndarray,
        cache: list,
        keep: Sequence[int] = (-1,),
    ) -> mx.array:
        """Logits of some tokens, mx (kept, vocabulary).

        The layers take positions from their caches. Raises ModelError when `positions` are others.
        """
        masks = self._masks(ids, cache, is_last=tuple(keep) == (-1,))
        return self._run_layers(mx.array([ids]), embeddings, positions, masks, cache, keep)

    def step(self, token: mx.array, position: int, cache: list) -> mx.array:
        """Logits behind one token of text, mx (1, vocabulary)."""
        tokens = token[None]
        masks = self._masks([NO_TOKEN], cache, is_last=True)  # one token sees itself and its past, whichever it is
        return self._run_layers(tokens, self._embeddings(tokens), self.text_positions(position, 1), masks, cache, [0])

    def _run_layers(
        self,
        tokens: mx.array,
        embeddings: mx.array,
        positions: np.ndarray,
        masks: dict[str, Mask],
        cache: list,
        keep: Sequence[int],
    ) -> mx.array:
        """`forward` of tokens, mx (1, length), with the mask of each type of layer."""
        self._check_positions(positions, cache)
        hidden, kept = embeddings, mx.array(list(keep))
        layer_inputs = self._layer_inputs(tokens, embeddings)
        shared: dict[int, KeysValues | None] = {}  # keys and values by layer
        for index, layer in enumerate(self._text.layers):
            if index == self._text.first_kv_shared_layer_idx:
                # The layers from here on have no cache: only the tokens whose logits are needed go through them.
                hidden = hidden[:, kept]
                masks = {kind: mask[kept] if isinstance(mask, mx.array) else mask for kind, mask in masks.items()}
                layer_inputs = None if layer_inputs is None else layer_inputs[:, kept]
            hidden, shared[index], _ = layer(
                hidden,
                masks[layer.layer_type],
                cache[index] if index < len(cache) else None,
                per_layer_input=None if layer_inputs is None else layer_inputs[:, :, index],
                shared_kv=shared.get(self._text.previous_kvs[index]),
                offset=mx.array(positions[0])[kept],  # of a layer that shares keys and values; the others ask the cache
            )
        if self._text.first_kv_shared_layer_idx == len(self._text.layers):
            hidden = hidden[:, kept]
        return self._model.language_model.logits_from_hidden(self._text.norm(hidden[0])).astype(mx.float32)

    def _picture_around(self, ids: list[int], index: int) -> tuple[int, int]:
        """Index of the first token of the picture around `index`, and the index behind its last token."""
        first = last = index
        while first > 0 and ids[first - 1] == self._image_token:
            first -= 1
        while last < len(ids) and ids[last] == self._image_token:
            last += 1
        return first, last

    def _check_positions(self, positions: np.ndarray, cache: list) -> None:
        """Raise ModelError for positions that are not those that the layers take from their caches."""
        if isinstance(cache[0], PassCache):
            held, expected = [cache[0].tree.held], cache[0].tree.places[None]
        else:
            held = sorted({entry.offset for entry in cache})
            expected = self.text_positions(held[0], positions.shape[1])
        if len(held) > 1 or not np.array_equal(positions, expected):
            raise ModelError(
                f'The caches hold {held} tokens and the next one is given position {positions[0, 0]}; '
                f'expected positions that begin where all the caches end. Build the state again.'
            )

    def _masks(self, ids: list[int], cache: list, is_last: bool) -> dict[str, Mask]:
        """The mask of a call's tokens for each type of layer. is_last: only the last token's logits are needed."""
        pictures = None
        if self.two_way and len(ids) > 1 and not isinstance(cache[0], PassCache):  # a tree has it in its mask
            pictures = self._picture_numbers(ids)
        is_array = pictures is not None or not is_last
        masks: dict[str, Mask] = {}
        for layer, entry in zip(self._text.layers, cache):
            if layer.layer_type not in masks:
                window = self._window if layer.layer_type == 'sliding_attention' else None
                mask = entry.make_mask(len(ids), window_size=window, return_array=is_array)
                masks[layer.layer_type] = mask if pictures is None else _with_two_way(mask, pictures)
        return masks

    def _picture_numbers(self, ids: list[int]) -> np.ndarray | None:
        """The number of the picture that each token belongs to, (length,); -1 for text. None when all are text."""
        cells = np.array(ids) == self._image_token
        if not cells.any():
            return None
        begins = cells & ~np.append(False, cells[:-1])
        return np.where(cells, np.cumsum(begins), -1)

    def _layer_inputs(self, tokens: mx.array, embeddings: mx.array) -> mx.array | None:
        """Per-layer inputs of tokens, mx (1, length), in the E models: mx (1, length, layers, width); else None."""
        if not self._text.hidden_size_per_layer_input:
            return None
        tokens = mx.where(tokens == self._image_token, NO_TOKEN, tokens)
        return self._text.project_per_layer_inputs(embeddings, self._text.get_per_layer_inputs(tokens))


def _with_two_way(mask: mx.array, pictures: np.ndarray) -> mx.array:
    """The mask in which the tokens of one picture see each other, inside the window or not."""
    together = mx.array((pictures[:, None] == pictures) & (pictures >= 0))
    older = mask.shape[1] - len(pictures)
    return mx.concatenate([mask[:, :older], mask[:, older:] | together], axis=1)
