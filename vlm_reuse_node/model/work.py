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

"""Counts the model's work: tokens through each stage, and the time they took or are expected to take. NumPy only."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

# Every new measurement multiplies the weight of the older ones in the fit by this factor.
REMEMBERED = 0.95
# A measurement is learnt with at most this many times its expected time. One outlier then hardly matters, and after
# several slow ones the expectation has grown.
MOST_SLOWER = 3


@dataclass(frozen=True)
class Work:
    """An amount of work of the model.

    vision_tokens: visual tokens encoded by the vision tower. prefill_tokens: tokens of prompts and choices that the
    language model read. decode_tokens: generated tokens that it read again for the next one. ms: their time.
    passes: calls of the language model.
    """

    vision_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    ms: float = 0.0
    passes: int = 0

    @property
    def tokens(self) -> int:
        """Tokens through all stages: the deterministic count of work."""
        return self.vision_tokens + self.prefill_tokens + self.decode_tokens

    def __add__(self, other: 'Work') -> 'Work':
        return Work(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values())))

    def __sub__(self, other: 'Work') -> 'Work':
        return Work(*(mine - theirs for mine, theirs in zip(vars(self).values(), vars(other).values())))


class Cost:
    """Expected time of one step of the model: a fixed part, plus a part for each token. Fitted to measured steps."""

    def __init__(self) -> None:
        """Start without measurements."""
        self._sums = np.zeros(5)  # weighted sums of 1, tokens, ms, tokens^2, tokens * ms
        self._most_tokens = 0  # the largest step that was measured; the fit says little about larger ones
        self._is_provisional = True

    @property
    def is_known(self) -> bool:
        """Whether a step was measured."""
        return self._sums[0] > 0

    def learn(self, tokens: int, ms: float) -> None:
        """Add the measured time of a step with this many tokens.

        The first measurement is used only until the second, because it may include the compilation of kernels.
        """
        if self._is_provisional and self.is_known:
            self._sums, self._most_tokens, self._is_provisional = np.zeros(5), 0, False
        if tokens <= self._most_tokens and (expected := self.ms(tokens)):
            ms = min(ms, MOST_SLOWER * expected)
        self._most_tokens = max(self._most_tokens, tokens)
        self._sums = REMEMBERED * self._sums + (1, tokens, ms, tokens * tokens, tokens * ms)

    def ms(self, tokens: int) -> float:
        """Expected time of a step with this many tokens: never negative, never less for more tokens; 0 if not known."""
        count, x, y, xx, xy = self._sums
        if not count:
            return 0.0
        variance = count * xx - x * x
        slope = max(0.0, (count * xy - x * y) / variance) if variance > 1e-6 * count * xx else 0.0
        return float(max(0.0, (y - slope * x) / count + slope * tokens))


@dataclass
class Meter:
    """What one model has done since it was loaded, and what each kind of step is expected to cost.

    clock: seconds; a benchmark may measure processor time.
    done: all work so far. The difference of two readings is the work between them.
    see, see_cells: a call of the vision tower on a whole picture, and on some cells. read: a call of the language model
    on tokens of a prompt or of choices. decode: on the token that was generated last.
    """

    clock: Callable[[], float] = time.perf_counter
    done: Work = Work()
    see: Cost = field(default_factory=Cost)
    see_cells: Cost = field(default_factory=Cost)
    read: Cost = field(default_factory=Cost)
    decode: Cost = field(default_factory=Cost)

    def frame(self, cells: int, tokens: int) -> Work:
        """Expected work to encode a picture and to prefill its slot. cells: in the picture. tokens: in the slot."""
        return Work(cells, tokens, 0, self.see.ms(cells) + self.read.ms(tokens))

    def patch(self, cells: int, total: int, tokens: int) -> Work:
        """Expected work to encode and rewrite some of the `total` cells of a picture whose slot has `tokens` tokens.

        Until a patch was measured: the cells' share of the time of the whole picture.
        """
        again = cells + tokens - total
        known = self.see_cells.is_known
        ms = self.see_cells.ms(cells) + self.read.ms(again) if known else self.frame(total, tokens).ms * cells / total
        return Work(cells, again, 0, ms)

    def restart(self, cells: int, total: int, tokens: int) -> Work:
        """Expected work to encode some of the `total` cells of a picture, and to read so many tokens of its slot."""
        see = self.see_cells.ms(cells) if self.see_cells.is_known else self.see.ms(total) * cells / total
        return Work(cells, tokens, 0, see + self.read.ms(tokens))
