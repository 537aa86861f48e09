"""The record of how far an answer is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far an answer is.

    stage: 'queue', 'refresh', 'prefill' or 'decode'; an answer that is given again after an escalation goes back.
    text: the answer so far.
    """

    stage: str
    text: str = ''
    tokens_generated: int = 0
