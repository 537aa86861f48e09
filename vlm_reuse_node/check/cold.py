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

"""The reference of every claim: the whole prompt computed from nothing, with positions of the whole prompt.

It shares the model with a session, and nothing else: no state, no snapshot, no stand-ins, no pass with something else.
The same computation on input that is moved by one unit in the last place gives the noise (`model/noise.py`).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from vlm_reuse_node.model import noise
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame

LEAST = 1e-3  # what is less probable counts as this much: no answer depends on it, and its logarithm is mostly noise


@dataclass(frozen=True, eq=False)
class ColdRun:
    """A cold pass over the pictures. cache: ends behind them. number: 0, or that of a moved input."""

    cache: list
    number: int


@dataclass(frozen=True)
class Difference:
    """How far two ways to compute the same are apart, and where noise ends."""

    apart: float
    bound: float

    @property
    def is_noise(self) -> bool:
        """Whether rounding explains it. Never so for what is no number."""
        return self.apart < self.bound


class Cold:
    """Computes answers about some pictures from nothing, each time on a copy of one cold cache.

    stop_ids: the model's. tokens: number of tokens up to the question.
    features: how far the features of a session are from the own ones.
    """

    def __init__(
        self,
        vlm: Vlm,
        frames: Sequence[Frame],
        template: PromptTemplate,
        seen: Sequence[mx.array] = (),
        by_cells: bool = False,
    ) -> None:
        """Run image processor and vision tower.

        template: of the prompt with these pictures, oldest first. seen: the features that a session has computed.
        by_cells: whether it has encoded single cells: their rounding begins with the pixels. Else it has made the same
            call as this class, and rounding begins with the features.
        """
        self._vlm, self.stop_ids = vlm, vlm.stop_ids
        prepared = [vlm.family.prepare(frame.rgb) for frame in frames]
        pixels = [values for values, _ in prepared]
        self._grids = [grid for _, grid in prepared]
        self._prefix = vlm.family.expand(template.prefix, self._grids)
        self.tokens = len(self._prefix)
        self._runs: dict[bytes, ColdRun] = {}
        features = self._encode(pixels)
        self._by_cells = by_cells
        # Noise is that of the type that the model computes in, and some processors deliver a finer one.
        given = tree_map(lambda array: _coarse(array, features[0].dtype), pixels) if by_cells else features
        self._given: Any = given if by_cells else self._embed(features)
        floor = noise.floor(given, self._encode if by_cells else list, lambda given: self._encode(pixels))
        self.features = Difference(noise.apart(list(seen) or features, features), noise.FACTOR * floor)

    def difference(self, warm: Any, measure: Callable[[ColdRun], Any]) -> Difference:
        """Compare what a session has found with what `measure` finds in a cold run. Both: arrays, or lists of them."""
        expected = measure(self.run())
        bound = noise.bound(self._given, lambda given: measure(self._run(given)))
        return Difference(noise.apart(warm, expected), bound)

    def run(self) -> ColdRun:
        """Return the cold run."""
        return self._run(self._given)

    def _run(self, given: Any) -> ColdRun:
        """The cold run on this input, computed once."""
        digest = blake2b(digest_size=16)
        leaves: Any = tree_flatten(given)
        for _, leaf in leaves:
            digest.update(np.array(leaf.astype(mx.float32) if isinstance(leaf, mx.array) else leaf).tobytes())
        key = digest.digest()
        if key not in self._runs:
            self._runs[key] = self._compute(given, len(self._runs))
        return self._runs[key]

    def _encode(self, pixels: Sequence[Any]) -> list[mx.array]:
        features = [self._vlm.family.encode(each, grid) for each, grid in zip(pixels, self._grids)]
        mx.eval(features)
        return features

    def scores(self, run: ColdRun, question: list[int], choices: Sequence[list[int]]) -> np.ndarray:
        """Log-probability of each choice among the choices, (choices,)."""
        logits = [self._behind(run, question, choice) for choice in choices]
        shares = self._vlm.shares(logits[0][:1], [(choice, rows[1:]) for choice, rows in zip(choices, logits)])
        return log_of(shares)

    def table(self, run: ColdRun, question: list[int], answer: Sequence[int]) -> np.ndarray:
        """Log-probabilities before each token of an answer and behind the last, (tokens + 1, vocabulary)."""
        return log_table(self._behind(run, question, list(answer)))

    def _embed(self, features: list[mx.array]) -> mx.array:
        return self._vlm.family.embed(self._prefix, mx.concatenate(features))

    def _compute(self, given: Any, number: int) -> ColdRun:
        """Run the prompt. number: 0, or that of a moved input."""
        cache, positions = self._vlm.new_cache(), self._vlm.family.positions(self._prefix, self._grids)
        embeddings = self._moved(self._embed(self._encode(given)), number) if self._by_cells else given
        self._vlm.run(cache, self._prefix, positions, embeddings=embeddings)
        return ColdRun(cache, number)

    def _behind(self, run: ColdRun, question: list[int], answer: list[int]) -> mx.array:
        """Logits before each token of an answer and behind the last, mx (tokens + 1, vocabulary)."""
        ids = question + answer
        positions = self._vlm.family.positions(self._prefix + ids, self._grids)[:, len(self._prefix) :]
        embeddings = self._moved(self._vlm.family.embed(ids), run.number)
        return self._vlm.run(copy.deepcopy(run.cache), ids, positions, embeddings=embeddings, keep=len(answer) + 1)

    def _moved(self, embeddings: mx.array, number: int) -> mx.array:
        """Embeddings that the noise's input does not hold, moved with it: a text rounds as a picture does."""
        return noise.moved(embeddings, number) if number else embeddings


def log_of(shares: Sequence[float]) -> np.ndarray:
    """Logarithms of probabilities, of at least LEAST."""
    return np.log(np.maximum(shares, LEAST))


def columns_of(table: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The log-probabilities of some tokens in each row, of at least log LEAST. table: see `log_table`."""
    return np.maximum(np.take_along_axis(table, columns, axis=-1), np.log(LEAST))


def log_table(logits: mx.array) -> np.ndarray:
    """Log-probabilities of logits, (tokens, vocabulary)."""
    table = np.array(logits.astype(mx.float32), np.float64)
    table -= table.max(axis=-1, keepdims=True)
    return table - np.log(np.exp(table).sum(axis=-1, keepdims=True))


def _coarse(array: Any, unit: mx.Dtype) -> Any:
    is_number = isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)
    values = mx.array(array) if is_number else array
    is_finer = isinstance(values, mx.array) and mx.issubdtype(values.dtype, mx.floating)
    return values.astype(unit) if is_finer and values.dtype.size > unit.size else array
