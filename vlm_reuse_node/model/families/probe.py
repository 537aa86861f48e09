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

"""Checks at load, on one small picture, that the generic family computes the same as the model itself."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from vlm_reuse_node.model import noise

PROBE_PX = 64
# Of logits against the model's own, a share of their spread: above it they are wrong, however noisy the arithmetic is.
MOST_ERROR = 0.1


def picture() -> np.ndarray:
    """Return the small picture, random pixels: (PROBE_PX, PROBE_PX, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (PROBE_PX, PROBE_PX, 3), dtype=np.uint8)


def embeddings_fault(embeddings: mx.array, without_picture: mx.array, is_image: np.ndarray) -> str:
    """Return why a model's embeddings cannot be served, '' when they can: pictures may only change their image tokens.

    embeddings, without_picture: of a picture's tokens, mx (tokens, hidden), with and without its pixels. is_image:
    which of the tokens are image tokens, (tokens,) bool.
    """
    text = mx.array(np.flatnonzero(~is_image))
    if text.size and not mx.array_equal(embeddings[text], without_picture[text]):
        return 'its pictures change other rows than those of their image tokens'
    return ''


def logits_fault(embeddings: mx.array, ours: Callable[[mx.array], mx.array], theirs: mx.array) -> str:
    """Return why a model's logits cannot be served, '' when they can: ours may differ by rounding only.

    embeddings: of a chat with the picture, mx (1, tokens, hidden). ours: computes logits from them in calls as a
    session makes them, cut inside the picture. theirs: from the model's own forward in one call. Logits are
    mx (tokens, vocabulary).
    """
    error = _share_of_spread(theirs, ours(embeddings))
    most = min(MOST_ERROR, noise.bound(embeddings, ours, distance=_share_of_spread))
    if error < most:
        return ''
    return (
        f'computed call by call its logits are {100 * error:.2g}% off its own forward, and rounding makes less than '
        f'{100 * most:.2g}%, so that its pictures are seen in both directions, or it takes more than embeddings'
    )


def _share_of_spread(logits: mx.array, others: mx.array) -> float:
    """How far other logits are from these, mx (tokens, vocabulary), as a share of their spread: the tokens' mean."""
    (right,), (found,) = noise.arrays(logits), noise.arrays(others)
    error = np.linalg.norm(found - right, axis=-1) / np.linalg.norm(right - right.mean(), axis=-1)
    return float(error.mean())
