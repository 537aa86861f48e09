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

"""Counts drift: a share of the answers is repeated cold-dense while the model is idle, and compared.

Rates and their bounds are derived from the counts.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass

from vlm_reuse_node.session.drift_bounds import DriftCount

# The rate is measured over this many of the newest audited answers.
WINDOW = 1000
# Patching stops when this many drifted answers would have a lower probability than this at a true rate of max_drift.
UNLIKELY = 0.01


@dataclass(frozen=True)
class AuditCounts:
    """Counts of audited answers.

    choices, texts: of the newest WINDOW answers from approximate states.
    exact_answers, exact_drifted: among all answers from exact states, where any drift is a fault.
    fallbacks: how often patching was stopped.
    is_trusted: whether approximate states may be used now.
    """

    choices: DriftCount = DriftCount()
    texts: DriftCount = DriftCount()
    exact_answers: int = 0
    exact_drifted: int = 0
    fallbacks: int = 0
    is_trusted: bool = True

    @property
    def patched(self) -> DriftCount:
        """Of choices and texts from approximate states."""
        return self.choices + self.texts


class DriftAudit:
    """Chooses which answers are audited, counts the results, and says whether approximate states may be used.

    Approximate states are not used any more when more answers drifted than a rate of max_drift explains. They are tried
    again after 3 / max_drift answers, which is enough for that rate to show. Every further stop doubles the number of
    answers. This is a back-off: while all states are exact, the audit learns nothing about approximate ones.
    """

    def __init__(self) -> None:
        """Start with trust and all counts at 0."""
        self._results: deque[tuple[bool, bool]] = deque(maxlen=WINDOW)  # has choices, drifted
        self._exact: Counter[bool] = Counter()
        self._due = 0.0  # accumulated share of answers to audit
        self._given = 0  # answers since patching was last stopped
        self._fallbacks = 0
        self.is_trusted = True

    @property
    def counts(self) -> AuditCounts:
        """The counts now."""
        return AuditCounts(
            self._count(True),
            self._count(False),
            self._exact.total(),
            self._exact[True],
            self._fallbacks,
            self.is_trusted,
        )

    def chooses(self, share: float, max_drift: float) -> bool:
        """Count a given answer. Returns whether to audit it; the audited share of all answers is spread evenly."""
        self._given += 1
        if not self.is_trusted and self._given >= math.ceil(3 / max_drift) * 2 ** (self._fallbacks - 1):
            self.is_trusted = True
            self._results.clear()
        self._due += share
        if self._due < 1:
            return False
        self._due -= 1
        return True

    def add(self, drifted: bool, exact: bool, has_choices: bool, max_drift: float) -> None:
        """Count one audited answer. exact: whether its state was exact. Such answers are counted apart."""
        if exact:
            self._exact[drifted] += 1
        elif self.is_trusted:
            self._results.append((has_choices, drifted))
            patched = self.counts.patched
            if _by_chance(patched.drifted, patched.answers, max_drift) < UNLIKELY:
                self.is_trusted, self._given = False, 0
                self._fallbacks += 1

    def _count(self, has_choices: bool) -> DriftCount:
        drifted = [drifted for had_choices, drifted in self._results if had_choices == has_choices]
        return DriftCount(len(drifted), sum(drifted))


def _by_chance(drifted: int, answers: int, rate: float) -> float:
    """Probability of at least this many drifted answers at this rate (binomial)."""
    return 1 - sum(math.comb(answers, few) * rate**few * (1 - rate) ** (answers - few) for few in range(drifted))
