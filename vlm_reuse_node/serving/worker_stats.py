"""What the worker counts, and a snapshot of it."""

import threading
from collections import Counter
from dataclasses import dataclass

from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.drift_audit import AuditCounts


@dataclass(frozen=True)
class WorkerStats:
    """A snapshot of the worker's counts.

    model: the loaded model's name, '' before `start`.
    waiting: planners' questions that wait now, by camera, the running one not counted.
    answers: answers given, by status name.
    last_error: the newest failure of the model; '' when a picture was taken since.
    held: frames and bytes of each camera's state.
    audits: what each camera's drift audit has counted.
    watches: standing questions.
    device_bytes: what MLX holds: the weights, every state, and buffers it keeps for reuse.
    """

    model: str
    waiting: dict[str, int]
    answers: dict[str, int]
    last_error: str
    held: dict[str, tuple[int, int]]
    audits: dict[str, AuditCounts]
    watches: int
    device_bytes: int


class Tally:
    """Counts that the model's thread writes and any thread reads."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._lock = threading.Lock()
        self._answers: Counter[str] = Counter()
        self._held: dict[str, tuple[int, int]] = {}
        self._audits: dict[str, AuditCounts] = {}
        self.model = ''
        self.last_error = ''

    def count_answer(self, status: Status) -> None:
        """Add one answer."""
        with self._lock:
            self._answers[str(status)] += 1

    def note_states(self, held: dict[str, tuple[int, int]], audits: dict[str, AuditCounts]) -> None:
        """Take over what the sessions hold and have counted, by camera."""
        with self._lock:
            self._held, self._audits = held, audits

    def stats(self, waiting: dict[str, int], watches: int, device_bytes: int) -> WorkerStats:
        """The counts now."""
        with self._lock:
            return WorkerStats(
                self.model,
                waiting,
                dict(self._answers),
                self.last_error,
                dict(self._held),
                dict(self._audits),
                watches,
                device_bytes,
            )
