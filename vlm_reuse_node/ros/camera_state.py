"""The record of one camera's counts and current state."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CameraState:
    """One camera's counts since the start, and its current state.

    failure: why the subscription failed; '' when it did not.
    lost: pictures that the middleware began to receive and could not complete.
    silent_s: time since the last usable picture, steady clock; None before the first.
    arrival_age_s: age of that picture at its arrival, node clock. Negative: its stamp is in the future.
    incompatible_qos: the policy that a publisher offers and the subscription does not accept; '' for none.
    callback_ms: duration of the newest image callbacks.
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
        """Number of refused pictures, for all causes."""
        return sum(self.refused.values())

    @property
    def image_age_s(self) -> float:
        """Current age of the newest usable picture."""
        return self.arrival_age_s + (self.silent_s or 0.0)
