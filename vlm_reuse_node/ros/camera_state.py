"""The record of one camera's counts, and how it is now."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CameraState:
    """One camera's counts since the start, and how it is now.

    failure: why it cannot be subscribed to, '' when it can.
    lost: pictures that the middleware began to receive and could not complete.
    silent_s: since the last usable picture, steady clock; None before the first.
    arrival_age_s: how old that picture was when it arrived, node clock; negative: from the future.
    incompatible_qos: the policy a publisher offers and the subscription does not accept, '' for none.
    callback_ms: how long the newest image callbacks took.
    """

    name: str
    topic: str
    failure: str = ''
    publishers: int = 0
    received: int = 0
    lost: int = 0
    dropped: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    refused_in_a_row: int = 0
    last_refusal: str = ''
    incompatible_qos: str = ''
    silent_s: float | None = None
    arrival_age_s: float = 0.0
    callback_ms: tuple[float, ...] = ()

    @property
    def refused_total(self) -> int:
        """Refused, whatever the cause."""
        return sum(self.refused.values())

    @property
    def image_age_s(self) -> float:
        """Age of the newest usable picture now."""
        return self.arrival_age_s + (self.silent_s or 0.0)
