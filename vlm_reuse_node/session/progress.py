"""The record of an answer's progress."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Progress of an answer.

    stage: 'queue', 'refresh', 'prefill' or 'decode'. An escalation goes back to 'refresh'.
    text: the answer so far.
    """

    stage: str
    text: str = ''
    tokens_generated: int = 0
