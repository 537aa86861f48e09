"""How a token is picked from logits."""

from collections.abc import Callable

import mlx.core as mx


def likeliest(logits: mx.array) -> int:
    """The most probable token, from logits, mx (vocabulary,)."""
    return mx.argmax(logits).item()


def sampler(temperature: float, seed: int) -> Callable[[mx.array], int]:
    """Pick tokens by chance from logits, mx (vocabulary,): the same ones for the same seed and logits.

    temperature: 0 picks the likeliest.
    """
    if temperature == 0:
        return likeliest
    key = mx.random.key(seed)

    def sample(logits: mx.array) -> int:
        nonlocal key
        key, draw = mx.random.split(key)
        return mx.random.categorical(logits / temperature, key=draw).item()

    return sample


class ConfidenceSampler:
    """A sampler that notes how likely its picks were.

    least: probability of the least likely token picked so far, the one that ended the answer included.
    """

    def __init__(self, sample: Callable[[mx.array], int]):
        """Pick with `sample`."""
        self._sample, self.least = sample, 1.0

    def __call__(self, logits: mx.array) -> int:
        """Pick from logits, mx (vocabulary,)."""
        token = self._sample(logits)
        self.least = min(self.least, mx.exp(logits[token] - mx.logsumexp(logits)).item())
        return token
