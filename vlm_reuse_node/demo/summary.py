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

"""The sums and ratios of the demo's answers and pictures. No ROS, no files."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

from vlm_reuse_node.demo.sidecar import PlannedQuestion
from vlm_reuse_node.scene.refresh import Level, Totals

OK = 'OK'
_LEVELS = [str(level) for level in Level]


@dataclass(frozen=True)
class Reply:
    """One answer as a planner got it.

    picture_s: when the picture that it is about was taken, seconds from the first one; None: there was none.
    refresh_ms: a refresh it had to wait for. prefill_ms, decode_ms: reading the question, writing the answer.
    queue_ms: waiting for the model. cached_ns: stamp of the picture whose state it was computed from.
    remembered: whether the same question had this answer before, so that the model did nothing for it.
    """

    status: str
    message: str = ''
    text: str = ''
    picture_s: float | None = None
    image_age_s: float = 0.0
    level: str = ''
    tokens_reused: int = 0
    tokens_prefilled: int = 0
    refresh_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    queue_ms: float = 0.0
    cached_ns: int = 0
    token_ids: tuple[int, ...] = ()
    remembered: bool = False

    @property
    def model_ms(self) -> float:
        """The model's own time for it, without waiting for the model (`queue_ms`) and without DDS."""
        return self.refresh_ms + self.prefill_ms + self.decode_ms

    @property
    def is_answer(self) -> bool:
        """Whether the question was answered at all."""
        return self.status == OK


@dataclass(frozen=True)
class Row:
    """One question, asked warm (as a planner asks), and right after it cold (from nothing; None: not asked)."""

    question: PlannedQuestion
    warm: Reply
    cold: Reply | None = None

    @property
    def truth(self) -> str | None:
        """The true answer about the picture of the warm answer; None: nobody can judge."""
        if not self.warm.is_answer or self.warm.picture_s is None:
            return None
        return self.question.truth_at(self.warm.picture_s)

    @property
    def is_right(self) -> bool | None:
        """Whether the warm answer is true; None: nobody can judge."""
        return None if self.truth is None else _plain(self.warm.text) == _plain(self.truth)

    @property
    def is_equal(self) -> bool | None:
        """Whether warm and cold are the same, text and tokens; None: they are no pair."""
        if self.pair is None:
            return None
        warm, cold = self.pair
        return (warm.text, warm.token_ids) == (cold.text, cold.token_ids)

    @property
    def pair(self) -> tuple[Reply, Reply] | None:
        """Warm and cold where both are answers from the same cached picture; None: they cannot be compared."""
        both = self._answers
        return both if both and both[0].cached_ns == both[1].cached_ns else None

    @property
    def is_apart(self) -> bool:
        """Whether both were answered, but another picture was computed in between."""
        return self._answers is not None and self.pair is None

    @property
    def _answers(self) -> tuple[Reply, Reply] | None:
        """Warm and cold where both were answered."""
        if self.cold is None or not self.warm.is_answer or not self.cold.is_answer:
            return None
        return self.warm, self.cold


@dataclass(frozen=True)
class Look:
    """One picture that the node looked at, and what was computed from it.

    level, reason: of the dearest refresh from it; of the look, without one.
    tokens, tokens_paid: visual tokens of the picture, and how many were computed.
    tokens_stale: of those that were not computed, how many differ from the kept state and wait.
    look_ms: time of the change detector, without the model. refresh_ms: of vision tower and language model.
    """

    picture_s: float
    level: str
    reason: str
    tokens: int
    tokens_paid: int = 0
    look_ms: float = 0.0
    refresh_ms: float = 0.0
    tokens_stale: int = 0

    def together(self, other: 'Look') -> 'Look':
        """Return what is known of the same picture with what another message says about it."""
        dearest = max(self, other, key=lambda look: _LEVELS.index(look.level))
        return replace(
            dearest,
            tokens_paid=self.tokens_paid + other.tokens_paid,
            look_ms=self.look_ms + other.look_ms,
            refresh_ms=self.refresh_ms + other.refresh_ms,
            tokens_stale=min(self.tokens_stale, other.tokens_stale),
        )


@dataclass(frozen=True)
class CameraCounts:
    """Pictures that the player sent, and what the node says became of them."""

    sent: int
    received: int = 0
    dropped: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Summary:
    """Everything the demo measured; the figures are properties of the counts.

    looks: the pictures that were looked at, in order. totals: the node's own account of this camera.
    """

    rows: tuple[Row, ...]
    looks: tuple[Look, ...]
    camera: CameraCounts
    totals: Totals = Totals()

    @property
    def work_ratio(self) -> float | None:
        """All the model's time over what cold-dense would have needed; None without a question."""
        return self.totals.ratio if self.totals.cold_ms else None

    @property
    def questions(self) -> int:
        """Questions asked."""
        return len(self.rows)

    @property
    def answered(self) -> int:
        """Questions that got an answer."""
        return sum(row.warm.is_answer for row in self.rows)

    @property
    def judged(self) -> int:
        """Answers whose truth is known."""
        return sum(row.is_right is not None for row in self.rows)

    @property
    def correct(self) -> int:
        """Answers that are true."""
        return sum(row.is_right is True for row in self.rows)

    @property
    def pairs(self) -> tuple[tuple[Reply, Reply], ...]:
        """Warm and cold answers from the same cached picture."""
        return tuple(row.pair for row in self.rows if row.pair)

    @property
    def equal(self) -> int:
        """Pairs with the same text and tokens."""
        return sum(row.is_equal is True for row in self.rows)

    @property
    def apart(self) -> int:
        """Rows answered warm and cold from different pictures; they are not compared."""
        return sum(row.is_apart for row in self.rows)

    @property
    def remembered(self) -> int:
        """Pairs whose warm answer was remembered."""
        return sum(warm.remembered for warm, _ in self.pairs)

    @property
    def warm_ms_median(self) -> float | None:
        """Median time of the pairs' warm answers; None without pairs."""
        return _median(warm.model_ms for warm, _ in self.pairs)

    @property
    def cold_ms_median(self) -> float | None:
        """Median time of the pairs' cold answers; None without pairs."""
        return _median(cold.model_ms for _, cold in self.pairs)

    @property
    def speedup(self) -> float | None:
        """Median cold time over median warm time; None without pairs."""
        warm_ms = self.warm_ms_median
        cold_ms = self.cold_ms_median
        return cold_ms / warm_ms if warm_ms and cold_ms is not None else None

    @property
    def tokens(self) -> int:
        """Visual tokens of all pictures."""
        return sum(look.tokens for look in self.looks)

    @property
    def tokens_paid(self) -> int:
        """Visual tokens that were computed."""
        return sum(look.tokens_paid for look in self.looks)

    @property
    def refresh_ratio(self) -> float | None:
        """Share of the visual tokens that was computed; None without pictures."""
        return self.tokens_paid / self.tokens if self.tokens else None

    @property
    def refresh_levels(self) -> dict[str, int]:
        """Pictures by the dearest level of the refresh ladder that was computed from them."""
        return dict(sorted(Counter(look.level for look in self.looks).items()))

    @property
    def refresh_ms(self) -> float:
        """The model's time for refreshes, those that questions waited for included."""
        return sum(look.refresh_ms for look in self.looks)

    @property
    def look_ms(self) -> float:
        """Time of the change detector, which needs no model."""
        return sum(look.look_ms for look in self.looks)

    @property
    def warm_ms(self) -> float:
        """Time spent on the warm answers of the pairs."""
        return sum(warm.model_ms for warm, _ in self.pairs)

    @property
    def cold_ms(self) -> float:
        """Time spent on the cold answers of the pairs."""
        return sum(cold.model_ms for _, cold in self.pairs)


def _median(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return median(numbers) if numbers else None


def _plain(text: str) -> str:
    return ' '.join(text.lower().split())
