"""Drift as it is found while nobody asks: a share of the answers is given again, cold-dense, and compared.

Counts first; the rates and their bounds are derived. Standard library only.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass

# Audited answers that count for the rate.
WINDOW = 1000
# A rate of max_drift has drifted too often by chance with less than this probability.
UNLIKELY = 0.01
# Two-sided 95 %.
_Z = 1.96


@dataclass(frozen=True)
class AuditCounts:
    """Counts of the answers that were given again.

    answers, drifted: of the newest WINDOW from approximate states. exact_answers, exact_drifted: of all from exact
    ones, where any drift is a fault. fallbacks: how often the rate was too high so far. is_trusted: whether approximate
    states may be used now.
    """

    answers: int = 0
    drifted: int = 0
    exact_answers: int = 0
    exact_drifted: int = 0
    fallbacks: int = 0
    is_trusted: bool = True

    @property
    def rate(self) -> float:
        """Share that drifted, 0 without answers."""
        return self.drifted / self.answers if self.answers else 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """The Wilson score interval of the rate, 95 %: (0, 1) without answers."""
        if not self.answers:
            return 0.0, 1.0
        spread = _Z * _Z / self.answers
        middle = (self.rate + spread / 2) / (1 + spread)
        half = math.sqrt(spread * (self.rate * (1 - self.rate) + spread / 4)) / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)


class DriftAudit:
    """Chooses which answers are audited, counts what came out, and says whether approximate states may be used.

    They may not from the moment that so many have drifted as a rate of max_drift would not explain; and again after a
    number of answers among which that rate would have shown (3 / max_drift), twice as many after every further time.
    That is a back-off: while everything is exact nothing is learnt about approximate states.
    """

    def __init__(self) -> None:
        """Trust, with nothing counted."""
        self._results: deque[bool] = deque(maxlen=WINDOW)
        self._exact: Counter[bool] = Counter()
        self._due = 0.0  # audits owed so far, by the share
        self._given = 0  # answers since the last change of trust
        self._fallbacks = 0
        self.is_trusted = True

    @property
    def counts(self) -> AuditCounts:
        """The counts now."""
        return AuditCounts(
            len(self._results),
            sum(self._results),
            self._exact.total(),
            self._exact[True],
            self._fallbacks,
            self.is_trusted,
        )

    def chooses(self, share: float, max_drift: float) -> bool:
        """Count an answer that was given; returns whether it is to be audited, so that this share of all is, evenly."""
        self._given += 1
        if not self.is_trusted and self._given >= math.ceil(3 / max_drift) * 2 ** (self._fallbacks - 1):
            self.is_trusted = True
            self._results.clear()
        self._due += share
        if self._due < 1:
            return False
        self._due -= 1
        return True

    def add(self, drifted: bool, exact: bool, max_drift: float) -> None:
        """Count one audited answer; exact: it came from an exact state, and tells nothing of approximate ones."""
        if exact:
            self._exact[drifted] += 1
        elif self.is_trusted:
            self._results.append(drifted)
            if _by_chance(sum(self._results), len(self._results), max_drift) < UNLIKELY:
                self.is_trusted, self._given = False, 0
                self._fallbacks += 1


def _by_chance(drifted: int, answers: int, rate: float) -> float:
    """Probability of so many drifted answers, or more, at this rate (binomial)."""
    return 1 - sum(math.comb(answers, few) * rate**few * (1 - rate) ** (answers - few) for few in range(drifted))
