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

from collections.abc import Callable, Sequence
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
    """A sampler that notes how probable its tokens were, since it was told to forget."""

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

    def forget(self) -> None:
        """Count from the next token on."""
        self._least = mx.array(1.0)

    @property
    def least(self) -> float:
        """Probability of the least probable token picked so far, the one that ended the answer included."""
        return cast(float, self._least.item())


class TextSampler(Sampler):
    """A sampler of thoughts and the text behind them: each ends at a bound of its own, and only the text counts.

    thoughts: number of tokens before the first one of the text, so far.
    """

    def __init__(
        self,
        sample: ConfidenceSampler,
        spoken: Callable[..., Sequence[int]],
        most_thoughts: int,
        most_text: int,
        stop_ids: Sequence[int],
    ) -> None:
        """Pick with `sample`, and one of `stop_ids` at a bound. spoken: as `PromptTemplate.spoken`."""
        self._sample, self._spoken, self._stop_ids = sample, spoken, stop_ids
        self._most_thoughts, self._most_text = most_thoughts, most_text
        self._ids: list[int] = []
        self._speaks = False
        self.thoughts = 0

    def __call__(self, logits: mx.array) -> mx.array:
        """Pick from logits, mx (vocabulary,)."""
        is_over = len(self._ids) - self.thoughts >= self._most_text if self._speaks else self.is_cut
        return mx.array(self._stop_ids[0]) if is_over else self._sample(logits)

    @property
    def is_cut(self) -> bool:
        """Whether the thoughts took all the tokens that they may take."""
        return not self._speaks and self.thoughts >= self._most_thoughts

    def accept(self, token: int) -> None:
        """Find out whether the text has begun, and hand the token on."""
        self._sample.accept(token)
        self._ids.append(token)
        if self._speaks or token in self._stop_ids:
            return
        if not self._spoken(self._ids):
            self.thoughts = len(self._ids)
            self._sample.forget()
        else:  # what may still become the beginning of a thought is no text yet
            self._speaks = bool(self._spoken(self._ids, goes_on=True))


def sampler(temperature: float, seed: int) -> Sampler:
    """Return the sampler for a temperature; 0 picks the most probable token."""
    return RandomSampler(temperature, seed) if temperature else Sampler()
