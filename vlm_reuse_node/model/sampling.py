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

"""How a token is picked from logits. All of it stays on the device; whoever decodes reads the token from there."""

from typing import cast

import mlx.core as mx


class Sampler:
    """Picks the tokens of one answer, one after another: the most probable ones."""

    def __call__(self, logits: mx.array) -> mx.array:
        """Pick from logits, mx (vocabulary,). Returns a token, mx (), not evaluated yet."""
        return mx.argmax(logits)

    def accept(self, token: int) -> None:
        """Take note of the token that was picked last. Called once for each, before the next one is picked."""


class RandomSampler(Sampler):
    """Draws at random: the same tokens for the same seed and logits."""

    def __init__(self, temperature: float, seed: int) -> None:
        """Draw at a temperature above 0."""
        self._temperature = temperature
        self._key = mx.random.key(seed)

    def __call__(self, logits: mx.array) -> mx.array:
        """Draw from logits, mx (vocabulary,)."""
        self._key, draw = mx.random.split(self._key)
        return mx.random.categorical(logits / self._temperature, key=draw)


class ConfidenceSampler(Sampler):
    """A sampler that notes how probable its tokens were."""

    def __init__(self, sample: Sampler) -> None:
        """Pick with `sample`."""
        self._sample = sample
        self._least = mx.array(1.0)

    def __call__(self, logits: mx.array) -> mx.array:
        """Pick from logits, mx (vocabulary,)."""
        token = self._sample(logits)
        self._least = mx.minimum(self._least, mx.exp(logits[token] - mx.logsumexp(logits)))
        # Evaluated with the token, or it would hold the logits of all tokens until somebody asks for it.
        return mx.depends(token, self._least)

    def accept(self, token: int) -> None:
        """Hand it on."""
        self._sample.accept(token)

    @property
    def least(self) -> float:
        """Probability of the least probable token picked so far, the one that ended the answer included."""
        return cast(float, self._least.item())


def sampler(temperature: float, seed: int) -> Sampler:
    """Return the sampler for a temperature; 0 picks the most probable token."""
    return RandomSampler(temperature, seed) if temperature else Sampler()
