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

"""The record of one answer beside its cold-dense one, and the signals that may tell whether it drifted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.drift_bounds import DriftCount


@dataclass(frozen=True)
class Sample:
    """One answer of an arm.

    state: number of the state that it comes from. has_choices: whether the question has. drifted: whether
    cold-dense answers differently. exact, escalated, confidence: of the answer. margin: by how much the best choice is
    more probable than the second; of a text, its confidence. patches, share, paid: of the arm then, see `Arm`.
    flipped: whether the arm's answer to this question before was another.
    """

    state: int
    has_choices: bool
    drifted: bool
    exact: bool
    escalated: bool
    confidence: float
    margin: float
    patches: int
    share: float
    paid: float
    flipped: bool

    @classmethod
    def of(
        cls, answer: Answer, cold: Answer, before: Answer | None, state: int, patches: int, share: float, paid: float
    ) -> 'Sample':
        """Compare an answer with the cold-dense one. before: the arm's last answer to the same question."""
        best = sorted(answer.choice_scores, reverse=True)
        return cls(
            state,
            bool(best),
            given(answer) != given(cold),
            answer.exact,
            answer.escalated,
            answer.confidence,
            best[0] - best[1] if len(best) > 1 else answer.confidence,
            patches,
            share,
            paid,
            before is not None and given(before) != given(answer),
        )


def given(answer: Answer) -> tuple:
    """What was answered: the choice, or the tokens."""
    return answer.choice_index, answer.token_ids


def drift(samples: Iterable[Sample]) -> DriftCount:
    """Count drift."""
    drifted = [sample.drifted for sample in samples]
    return DriftCount(len(drifted), sum(drifted))


# Larger values speak for drift.
SIGNALS: dict[str, Callable[[Sample], float]] = {
    'confidence': lambda sample: -sample.confidence,
    'margin': lambda sample: -sample.margin,
    'patches in a row': lambda sample: float(sample.patches),
    'largest share of cells': lambda sample: sample.share,
    'another answer than before': lambda sample: float(sample.flipped),
}


def auc(samples: Iterable[Sample], signal: Callable[[Sample], float]) -> float | None:
    """The probability that a drifted answer has a larger signal than another one; None without both."""
    samples = list(samples)
    values = np.array([signal(sample) for sample in samples])
    drifted = np.array([sample.drifted for sample in samples], bool)
    if not drifted.any() or drifted.all():
        return None
    statistic = mannwhitneyu(values[drifted], values[~drifted]).statistic
    return float(statistic / (drifted.sum() * (~drifted).sum()))
