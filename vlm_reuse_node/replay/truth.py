"""What the true answer to a question is, and when."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Truth:
    """The true answer from `from_s` on, before `to_s`: seconds from the bag's first picture."""

    from_s: float
    to_s: float
    answer: str


def truth_at(truths: Iterable[Truth], picture_s: float) -> str | None:
    """Return the true answer about a picture taken then; None: nobody can judge."""
    return next((truth.answer for truth in truths if truth.from_s <= picture_s < truth.to_s), None)
