"""Drift as it is found while nobody asks: a share of the answers is given again, cold-dense, and compared.

Counts first; the rates and their bounds are derived. Standard library only.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass

# Audited answers that count for the rate.
WINDOW = 1000
# Two-sided 95 %.
_Z = 1.96


@dataclass(frozen=True)
class Audited:
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

    They may not from the moment the rate is above max_drift with confidence; and again after a clean stretch, so many
    audited answers without drift that a rate of max_drift would have shown (3 / max_drift), twice as many after every
    further time.
    """

    def __init__(self):
        """Trust, with nothing counted."""
        self._results: deque[bool] = deque(maxlen=WINDOW)
        self._exact = Counter()
        self._due, self._fallbacks, self._clean, self._trusted = 0.0, 0, 0, True

    @property
    def counts(self) -> Audited:
        """The counts now."""
        return Audited(len(self._results), sum(self._results), self._exact.total(), self._exact[True], self._fallbacks,
                       self._trusted)

    def chooses(self, share: float) -> bool:
        """Whether the answer just given is to be audited, so that this share of all is, evenly."""
        self._due += share
        if self._due < 1:
            return False
        self._due -= 1
        return True

    def add(self, drifted: bool, exact: bool, max_drift: float) -> None:
        """Count one audited answer; exact: it came from an exact state, and tells nothing of approximate ones."""
        if exact:
            self._exact[drifted] += 1
        elif self._trusted:
            self._results.append(drifted)
            if self.counts.bounds[0] > max_drift:
                self._trusted, self._clean = False, 0
                self._fallbacks += 1
        if not self._trusted:
            self._clean = 0 if drifted else self._clean + 1
            if self._clean >= math.ceil(3 / max_drift) * 2 ** (self._fallbacks - 1):
                self._trusted = True
                self._results.clear()
