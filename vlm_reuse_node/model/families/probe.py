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

"""Checks at load, on small pictures, that the generic family computes the same as `mlx_vlm.generate`.

And whether the model's layers take positions and masks from their caches, so that one call can compute tokens that do
not see each other (`pass_cache`).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.generate import generate_step
from mlx_vlm.models.cache import RotatingKVCache, make_prompt_cache

from vlm_reuse_node.model import kv_cache, noise, pass_cache
from vlm_reuse_node.model.token_tree import Block, TokenTree

PROBE_PX = 64
# Of logits against the model's own, a share of their spread: above it they are wrong, however noisy the arithmetic is.
MOST_ERROR = 0.1
# Tokens of an answer that are compared.
STEPS = 3
# Questions to try together, with the choices of each.
QUESTIONS = {'how many are there?': ('one', 'two of them'), 'is it red?': ('no, it is blue', 'yes')}
# What a model's configuration calls the number of tokens that a layer looks back.
WINDOWS = ('sliding_window', 'sliding_window_size', 'attention_window_size', 'attention_chunk_size')
# What it calls a scale of queries that grows with their place, and is 1 for thousands of tokens. mlx-vlm gives the
# tokens of a call the scales of places that follow each other.
PLACE_SCALE = 'llama_4_scaling_beta'


def pictures() -> list[np.ndarray]:
    """Return two small pictures of random pixels: (PROBE_PX, PROBE_PX, 3) uint8, and one that is wider."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (PROBE_PX, width, 3), dtype=np.uint8) for width in (PROBE_PX, 2 * PROBE_PX)]


def generated(model: Any, inputs: dict[str, Any]) -> tuple[list[int], mx.array]:
    """Let `mlx_vlm.generate` begin an answer: its first STEPS tokens, their log-probabilities mx (STEPS, vocabulary).

    inputs: all that the processor returns for a chat; all of it goes to the model, as `mlx_vlm.generate` does it.
    """
    given = dict(inputs)
    ids, mask, pixels = (given.pop(name, None) for name in ('input_ids', 'attention_mask', 'pixel_values'))
    steps = generate_step(ids, model, pixels, mask, max_tokens=STEPS, temperature=0.0, **given)
    tokens, found = zip(*islice(steps, STEPS))
    return [int(token) for token in tokens], mx.stack([each.reshape(-1).astype(mx.float32) for each in found])


def embeddings_fault(embeddings: mx.array, without_picture: mx.array, is_image: np.ndarray) -> str:
    """Return why a model's embeddings cannot be served, '' when they can: pictures may only change their image tokens.

    embeddings, without_picture: of a picture's tokens, mx (tokens, hidden), with and without its pixels. is_image:
    which of the tokens are image tokens, (tokens,) bool.
    """
    text = mx.array(np.flatnonzero(~is_image))
    if text.size and not mx.array_equal(embeddings[text], without_picture[text]):
        return 'its pictures change other rows than those of their image tokens'
    image = mx.array(np.flatnonzero(is_image))
    if mx.any(mx.all(embeddings[image] == without_picture[image], axis=-1)):
        return 'its pictures leave some of their image tokens as they are'
    return ''


def logits_fault(
    pixels: Any,
    embedded: Callable[[Any], mx.array],
    ours: Callable[[mx.array], mx.array],
    theirs: mx.array,
) -> str:
    """Return why a model's answers cannot be served, '' when they can: ours may differ by rounding only.

    pixels: of the pictures in a chat. embedded: computes the chat's embeddings from them, mx (1, tokens, hidden). ours:
    computes the log-probabilities of an answer's tokens from those, in calls as a session makes them. theirs: the same
    from `generated`, mx (tokens, vocabulary).
    """
    embeddings = embedded(pixels)
    error = _share_of_spread(theirs, ours(embeddings))
    most = noise.bound(embeddings, ours, distance=_share_of_spread)
    if error >= most:  # the vision tower rounds too: a call with several pictures sums in another order
        given = pixels, embeddings
        most = max(most, noise.bound(given, lambda moved: ours(embedded(moved[0])), distance=_share_of_spread))
    most = min(MOST_ERROR, most)
    if error < most:
        return ''
    return (
        f'computed call by call its answers are {100 * error:.2g}% off those of mlx_vlm.generate, and rounding makes '
        f'less than {100 * most:.2g}%, so that its pictures are seen in both directions, or it takes more than '
        'embeddings'
    )


def as_a_session_does(
    family: Any,
    model: Any,
    ids: list[int],
    positions: np.ndarray,
    middle: int,
    answer: Sequence[int],
    embeddings: mx.array,
) -> mx.array:
    """Compute log-probabilities, mx (tokens, vocabulary), of an answer's tokens behind a chat.

    positions: of the chat, (axes, length). The chat is cut before token `middle`, and the answer decoded token by
    token.
    """
    cache = make_prompt_cache(model.language_model)
    given = embeddings[:]  # some models scale what they are given in place
    for part in (slice(0, middle), slice(middle, len(ids))):
        logits = family.forward(ids[part], given[:, part], positions[:, part], cache)
    found = [logits[-1]]
    for place, token in enumerate(answer[:-1], int(positions.max()) + 1):
        found.append(family.step(mx.array([token]), place, cache)[-1])
    logits = mx.stack(found)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def branch_fault(
    family: Any, model: Any, tokenizer: Any, ids: list[int], positions: np.ndarray, features: mx.array
) -> str:
    """Return why tokens that must not see each other cannot share a call, '' when they can.

    family: see `families.base.Family`. ids, positions: of a chat with a picture. features: of the picture's cells.
    """
    try:
        questions = [
            [list(tokenizer(text, add_special_tokens=False)['input_ids']) for text in (question, *choices)]
            for question, choices in QUESTIONS.items()
        ]
        return _branch_fault(family, model, ids, positions, family.embed(ids, features), questions)
    except Exception as error:  # of any of sixty model types
        return f'{type(error).__name__}: {error}'


def _branch_fault(
    family: Any,
    model: Any,
    ids: list[int],
    positions: np.ndarray,
    embeddings: mx.array,
    questions: Sequence[Sequence[list[int]]],
) -> str:
    """See `branch_fault`. questions: of each the tokens, then those of its choices. Raises whatever a model raises."""
    cache = make_prompt_cache(model.language_model)
    if not pass_cache.is_possible(cache):
        return 'its cache holds more than keys and values of each token'
    if _scales_places(model):
        return f'it scales queries by their place in a call ({PLACE_SCALE})'
    blocks: list[Block] = []
    for question, *choices in questions:
        blocks += [Block(question), *(Block(choice, len(blocks)) for choice in choices)]
    tree, tokens = TokenTree.of(len(ids), blocks), [token for block in blocks for token in block.ids]
    # A model that knows nothing of branches computes the first one right.
    branches = _branches(tree)[1:]
    mx.eval(family.forward(ids, embeddings, positions, cache))
    start = int(positions.max()) + 1
    behind_chat = family.text_positions(start, len(tokens))[:, tree.places - len(ids)]
    here, windows = kv_cache.take(cache), set[int]()

    def at_once(embeddings: mx.array) -> mx.array:
        parts = pass_cache.stand_ins(cache, tree)
        for part, kept in zip(parts, cache):
            part.make_mask = _noting(part.make_mask, windows, getattr(kept, 'max_size', None))  # type: ignore
        given = embeddings[:]  # some models scale what they are given in place
        logits = family.forward(tokens, given, behind_chat, parts, range(len(tokens)))
        mx.eval(logits)
        pass_cache.keep(parts, 0)
        return logits[mx.array(np.concatenate(branches))]

    def in_turn() -> Iterator[mx.array]:
        for branch in branches:
            kv_cache.restore(cache, here)
            places, given = family.text_positions(start, len(branch)), [tokens[token] for token in branch]
            yield family.forward(given, behind[:, mx.array(branch)], places, cache, range(len(branch)))

    behind = family.embed(tokens)
    found = at_once(behind)
    if unseen := _windows(model, cache) - windows:
        return f'a layer looks back {min(unseen)} tokens, and its cache is not asked which these are'
    error = _share_of_spread(mx.concatenate(list(in_turn())), found)
    kv_cache.restore(cache, here)
    most = min(MOST_ERROR, noise.bound(behind, at_once, distance=_share_of_spread))
    if error < most:
        return ''
    return (
        f'its logits are {100 * error:.2g}% off those of one branch after the other, and rounding makes less than '
        f'{100 * most:.2g}%, so that it does not take positions and masks from its cache'
    )


def _branches(tree: TokenTree) -> list[list[int]]:
    """The added tokens from the cache's end to each token that nothing follows."""
    parents = tree.parents.tolist()
    branches = []
    for leaf in sorted(set(range(len(parents))).difference(parents)):
        branch = [leaf]
        while parents[branch[0]] >= 0:
            branch.insert(0, parents[branch[0]])
        branches.append(branch)
    return branches


def _noting(make_mask: Callable[..., mx.array], windows: set[int], size: int | None) -> Callable[..., mx.array]:
    """The function, which adds the window of each mask to these. size: rows that the cache keeps, None for all."""

    def noting(count: int, window_size: int | None = None, **kwargs: Any) -> mx.array:
        windows.update(window for window in (window_size or size,) if window)
        return make_mask(count, window_size=window_size, **kwargs)

    return noting


def _windows(model: Any, cache: list) -> set[int]:
    """How many tokens layers look back, as the configuration and the caches say. Empty when they see all."""
    windows = {part.max_size for part in cache if type(part) is RotatingKVCache}
    for config in _configs(model):
        if getattr(config, 'use_sliding_window', True):
            windows |= {getattr(config, name, None) or 0 for name in WINDOWS}
    return windows - {0}


def _scales_places(model: Any) -> bool:
    ropes = [getattr(config, name, None) for config in _configs(model) for name in ('rope_parameters', 'rope_scaling')]
    return any(isinstance(rope, dict) and rope.get(PLACE_SCALE) for rope in ropes)


def _configs(model: Any) -> list[Any]:
    """The configuration of the language model, in all places where mlx-vlm may keep it."""
    return [getattr(model.config, 'text_config', None)] + [
        getattr(model.language_model, name, None) for name in ('config', 'args')
    ]


def _share_of_spread(logits: mx.array, others: mx.array) -> float:
    """How far other logits are from these, mx (tokens, vocabulary), as a share of their spread: the tokens' mean."""
    (right,), (found,) = noise.arrays(logits), noise.arrays(others)
    error = np.linalg.norm(found - right, axis=-1) / np.linalg.norm(right - right.mean(), axis=-1)
    return float(error.mean())
