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

"""How a token is picked from logits."""

from collections.abc import Callable
from typing import cast

import mlx.core as mx

# Picks a token from logits, mx (vocabulary,).
Sampler = Callable[[mx.array], int]


def likeliest(logits: mx.array) -> int:
    """Return the most probable token of logits, mx (vocabulary,)."""
    return cast(int, mx.argmax(logits).item())


def sampler(temperature: float, seed: int) -> Sampler:
    """Return a sampler that draws at random: the same tokens for the same seed and logits.

    temperature: 0 picks the likeliest.
    """
    if temperature == 0:
        return likeliest
    key = mx.random.key(seed)

    def sample(logits: mx.array) -> int:
        nonlocal key
        key, draw = mx.random.split(key)
        return cast(int, mx.random.categorical(logits / temperature, key=draw).item())

    return sample


class ConfidenceSampler:
    """A sampler that notes how probable its tokens were.

    least: probability of the least probable token picked so far, the one that ended the answer included.
    """

    def __init__(self, sample: Sampler) -> None:
        """Pick with `sample`."""
        self._sample = sample
        self.least = 1.0

    def __call__(self, logits: mx.array) -> int:
        """Pick from logits, mx (vocabulary,)."""
        token = self._sample(logits)
        probability = mx.exp(logits[token] - mx.logsumexp(logits))
        self.least = min(self.least, cast(float, probability.item()))
        return token
