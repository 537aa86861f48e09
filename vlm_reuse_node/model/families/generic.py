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

"""Every other vision-language model of mlx-vlm whose pictures are rows among those of the text: reuse, frame and full.

Such a model looks back only. It counts one position per token and takes positions from its cache, or it has a rule for
them (`kept_positions`). The tokens of a picture come from the model's own processor, their embeddings from its
`get_input_embeddings`. Which token sees which part of the picture is not known, so a changed picture is computed as a
whole.

A live picture, a question and its choices share a call where a model takes positions and masks from its cache. That is
tried at load. Elsewhere a picture is computed before the question, then the question, then each choice from a copy of
the state behind it. That is one call more for each choice, and a call costs the reading of all weights.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from vlm_reuse_node.errors import ImageError, ModelError
from vlm_reuse_node.model.chat import adds_special_tokens, rendered
from vlm_reuse_node.model.families import probe
from vlm_reuse_node.model.families.base import even_chunks
from vlm_reuse_node.model.families.kept_positions import RULE, SIZES, KeptPositions, keeps_positions
from vlm_reuse_node.model.families.picture_prompts import PicturePrompts
from vlm_reuse_node.model.families.picture_tokens import TokenSpan, rows_and_columns
from vlm_reuse_node.model.families.placed_rope import place_ropes
from vlm_reuse_node.model.pass_cache import PassCache

# Both names of the image token in a model's configuration.
IMAGE_TOKENS = ('image_token_index', 'image_token_id')
# What a model gives beside embeddings that changes no answer where the checks at load find none: `mlx_vlm.generate`
# hands it on, and Gemma 3's language model does not look at it.
NO_MATTER = ('attention_mask_4d',)
# What it gives where this file asks its rule for positions.
POSITIONS = ('position_ids', 'rope_deltas')
# What the model's processor returns for a chat with one picture, by name.
Pixels = dict[str, Any]

_log = logging.getLogger(__name__)


class Family(PicturePrompts):
    """See `families.base.Family`."""

    cell_px = 28
    branches_recurrent = False
    one_picture = False
    encodes_cells = False
    two_way = False

    def __init__(self, model: Any, processor: Any) -> None:
        """Serve a model and a processor as `mlx_vlm.load` returns them, once one small picture went through both.

        Raises ModelError with the reason for a model whose answers would not be exact here.
        """
        self._model = model
        self._processor = processor
        self._type = model.config.model_type
        self._keeps = self._keeps_positions()
        place_ropes(model.language_model)
        self._image_token = next(
            (token for name in IMAGE_TOKENS if (token := getattr(model.config, name, None)) is not None), None
        )
        self._text = rendered(processor, model.config, 'a', 1)
        try:
            self._adds_special = adds_special_tokens(processor, model.config)
            small, wide = probe.pictures()
            inputs = self._processed(small)
            if self._keeps:
                ids = np.array(inputs['input_ids'])[0].tolist()
                self._embed(mx.array([ids]), _pixels(inputs))
                self._kept = KeptPositions(model.language_model, ids, _size(inputs))
            if (told := inputs.get(IMAGE_TOKENS[0])) is not None:  # InternVL's processor knows it, its model does not
                self._image_token = int(np.array(told))
            self._image_token = self._repeated_token(inputs)
            self._plain = self._tokenized(self._text)
            self._placeholder = self._find_placeholder()
            self._each = self._count_rows(inputs)
            span = self._span(inputs)
            self._tokens = self._learn_tokens(span)
            features = self._refuse_inexact(_pixels(inputs))
            if fault := self._fault([wide]):
                self._refuse(fault)
            self.one_picture = bool(lonely := self._two_pictures_fault([small, wide]))
        except ModelError:
            raise
        except Exception as error:  # of any of sixty model types
            self._refuse(f'a small picture does not go through it ({type(error).__name__}: {error})')
        known = TokenSpan(1, len(self.cells(span)), span, _size(inputs))
        chat = self.expand(self._plain, [known])
        fault = probe.branch_fault(self, model, processor.tokenizer, chat, self.positions(chat, [known]), features)
        self.branches = not fault
        if lonely:
            _log.info("A '%s' model sees one picture at a time: %s", self._type, lonely)
        if fault:
            _log.info("A '%s' model computes a question and its choices one after the other: %s", self._type, fault)

    def prepare(self, rgb: np.ndarray) -> tuple[Pixels, TokenSpan]:
        """Run the processor; see `families.base.Family`."""
        try:
            inputs = self._processed(rgb)
            span = self._span(inputs)
        except (ValueError, ZeroDivisionError, IndexError) as error:
            raise _size_error(rgb, error) from error
        if self.slots(span) != [len(span)]:
            raise _size_error(rgb, 'its tokens cannot be told from the text')
        height, width = rgb.shape[:2]
        rows, columns = rows_and_columns(span.count(self._image_token), height / width)
        return _pixels(inputs), TokenSpan(rows, columns, span, _size(inputs))

    def encode(self, pixels: Pixels, grid: TokenSpan) -> mx.array:
        """Features of the picture's image tokens, mx (cells, hidden). Raises ImageError as `prepare` does."""
        try:
            ids, embeddings = self._seen(pixels)
            return embeddings[mx.array(self.cells(ids))]
        except ValueError as error:  # shapes that the processor lets through
            raise ImageError(
                'size',
                f'The model cannot take a picture of {grid.cells} visual tokens: {error}. '
                'Expected the ratio of a camera; try another size.',
            ) from error

    def embed(self, ids: list[int], features: mx.array | None = None) -> mx.array:
        """Token embeddings, mx (1, length, hidden)."""
        embeddings = self._embeddings(ids)
        if features is not None:
            embeddings[mx.array(self.cells(ids))] = features.astype(embeddings.dtype)
        return embeddings[None]

    def chunks(self, ids: list[int], limit: int) -> list[slice]:
        """Every `limit` tokens: no token looks ahead."""
        return even_chunks(len(ids), limit)

    def forward(
        self,
        ids: list[int],
        embeddings: mx.array,
        positions: np.ndarray,
        cache: list,
        keep: Sequence[int] = (-1,),
    ) -> mx.array:
        """Logits of some tokens, mx (kept, vocabulary).

        Layers that take positions from their caches: raises ModelError when `positions` are others.
        """
        return self._run_layers(mx.array([ids]), embeddings, positions, cache, keep)

    def step(self, token: mx.array, position: int, cache: list) -> mx.array:
        """Logits behind one token of text, mx (1, vocabulary)."""
        tokens = token[None]
        return self._run_layers(tokens, self._embed(tokens)[None], self.text_positions(position, 1), cache, [0])

    def _run_layers(
        self, tokens: mx.array, embeddings: mx.array, positions: np.ndarray, cache: list, keep: Sequence[int]
    ) -> mx.array:
        """`forward` of tokens, mx (1, length)."""
        length = tokens.shape[1]
        given = self._kept.handed(positions) if self._kept else {}
        for part in cache:
            if self._kept and isinstance(part, PassCache):
                part.offset = part.tree.held  # masks may be cut by it; no layer counts positions from it
        if not self._kept:
            self._refuse_other_positions(positions, cache)
        # Some models compute the whole vocabulary for all tokens unless told not to; the others ignore it.
        first = min(index % length for index in keep)
        output = self._model.language_model(
            tokens, inputs_embeds=embeddings, cache=cache, logits_to_keep=length - first, **given
        )
        kept = [index % length - length for index in keep]  # from the end, because some models ignore it
        return output.logits[0, mx.array(kept)].astype(mx.float32)

    def _refuse_other_positions(self, positions: np.ndarray, cache: list) -> None:
        if isinstance(cache[0], PassCache):
            held, expected = cache[0].tree.held, cache[0].tree.places[None]
        else:
            held = next((entry.offset for entry in cache if hasattr(entry, 'offset')), None)
            expected = None if held is None else self.text_positions(int(held), positions.shape[1])
        if expected is None or not np.array_equal(positions, expected):
            raise ModelError(
                f'The cache holds {held} tokens, and the positions of the next ones begin with {positions[:, :1]}; '
                f'a {self._type} model takes positions from its cache. Build the state again.'
            )

    def _embeddings(self, ids: Sequence[int]) -> mx.array:
        """The model's own embeddings of tokens, without pictures: mx (length, hidden)."""
        return self._embed(mx.array([[max(token, 0) for token in ids]]))  # -200 marks a picture in some models

    def _seen(self, pixels: Pixels) -> tuple[list[int], mx.array]:
        """A whole chat with a picture, since some models look for the picture by its place: tokens and embeddings."""
        given = np.array(pixels['input_ids'])[0].tolist()
        ids, embeddings = self._with_rows(given), self._embed(mx.array([given]), pixels)
        if len(embeddings) != len(ids):
            raise ValueError(f'the model makes {len(embeddings)} rows of the {len(ids)} that are expected')
        return ids, embeddings

    def _embed(self, tokens: mx.array, pixels: Pixels | None = None) -> mx.array:
        """`_embeddings` of tokens as they are given to the model, mx (1, length)."""
        pixels = {name: value for name, value in (pixels or {}).items() if name != 'input_ids'}
        given = self._model.get_input_embeddings(
            tokens, pixels.pop('pixel_values', None), mask=mx.ones(tokens.shape, mx.int32), **pixels
        )
        known = 'inputs_embeds', *NO_MATTER, *(POSITIONS if self._keeps else ())
        more = sorted(name for name, value in given.to_dict().items() if value is not None and name not in known)
        if more:
            self._refuse(
                f'its pictures give {", ".join(more)} beside embeddings (attention in both directions, cross '
                'attention, layers of their own)'
            )
        return given.inputs_embeds[0]

    def _count_rows(self, inputs: dict[str, Any]) -> int:
        """How many rows the model makes of one image token: 1, or those of a whole picture."""
        ids = np.array(inputs['input_ids'])[0]
        if np.count_nonzero(ids == self._image_token) != 1:
            return 1
        return len(self._embed(mx.array(ids)[None], _pixels(inputs))) - len(ids) + 1

    def _keeps_positions(self) -> bool:
        language = getattr(self._model, 'language_model', None)
        if language is None or not hasattr(self._model, 'get_input_embeddings'):
            self._refuse('it has no separate language_model and get_input_embeddings')
        if keeps_positions(language) and not hasattr(language, RULE):
            self._refuse(f'it keeps positions, which the next camera would inherit, and has no {RULE}')
        return keeps_positions(language)

    def _refuse_inexact(self, pixels: Pixels) -> mx.array:
        """Refuse a model that this file does not compute as the model does. pixels: of a small picture.

        Returns the picture's features.
        """
        ids, embeddings = self._seen(pixels)
        is_image = np.isin(np.arange(len(ids)), self.cells(ids))
        if fault := probe.embeddings_fault(embeddings, self._embeddings(ids), is_image):
            self._refuse(fault)
        return embeddings[mx.array(self.cells(ids))]

    def _two_pictures_fault(self, pictures: list[np.ndarray]) -> str:
        """`_fault`, which may also be an error that a model raises for more than one picture."""
        try:
            return self._fault(pictures)
        except Exception as error:  # of any of sixty model types
            return f'{type(error).__name__}: {error}'

    def _fault(self, pictures: list[np.ndarray]) -> str:
        """Why answers about some pictures are not those of `mlx_vlm.generate`, '' where they are."""
        try:
            text = rendered(self._processor, self._model.config, 'a', len(pictures))
            inputs = self._processed(*pictures)
        except ValueError as error:
            return f'mlx-vlm takes no {len(pictures)} pictures ({error})'
        theirs = self._with_rows(np.array(inputs['input_ids'])[0].tolist())
        seen = [self.prepare(rgb) for rgb in pictures]
        ids = self.expand(self._tokenized(text), [span for _, span in seen])
        if ids != theirs:
            return f'its processor makes other tokens of a chat with {len(pictures)} pictures'

        def embedded(pixels: Sequence[Pixels]) -> mx.array:
            return self.embed(ids, mx.concatenate([self.encode(each, span) for each, (_, span) in zip(pixels, seen)]))

        pixels = [each for each, _ in seen]
        answer, found = probe.generated(self._model, inputs)
        cells = self.cells(ids)
        positions = self.positions(ids, [span for _, span in seen])
        ours = partial(probe.as_a_session_does, self, self._model, ids, positions, int(cells[len(cells) // 2]), answer)
        return probe.logits_fault(pixels, embedded, ours, found)


def _pixels(inputs: dict[str, Any]) -> Pixels:
    """What a processor returns, without what it says of its tokens."""
    masks = ('attention_mask', 'token_type_ids')
    return {name: value for name, value in inputs.items() if name not in masks and value is not None}


def _size(inputs: dict[str, Any]) -> tuple[int, ...]:
    """Of one picture's patches, as the processor tells it; see `TokenSpan`."""
    return tuple(np.array(inputs[SIZES]).reshape(-1).tolist()) if inputs.get(SIZES) is not None else ()


def _size_error(rgb: np.ndarray, reason: object) -> ImageError:
    """The error about a picture of a size that does not suit."""
    height, width = rgb.shape[:2]
    return ImageError(
        'size',
        f'The model cannot take a picture of {width} x {height} pixels: {reason}. '
        f'Expected a ratio that cameras have and at least {probe.PROBE_PX} pixels a side; try another.',
    )
