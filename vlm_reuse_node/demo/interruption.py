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

"""A signal to stop, noted until there is a good moment to act on it."""

import signal
from types import FrameType
from typing import Any

from vlm_reuse_node.errors import VlmReuseError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptionError(VlmReuseError):
    """Somebody wants the program to stop."""


class Interruption:
    """As a context manager: Ctrl-C, a polite kill and a closed terminal are noted, and nothing is raised.

    Python loses a KeyboardInterrupt that arrives while it deletes an object; a note is not lost.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self._is_wanted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> 'Interruption':
        self._before = {kind: signal.signal(kind, self._note) for kind in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def check(self) -> None:
        """Raise InterruptionError when somebody wants to stop; call it wherever something is waited for."""
        if self._is_wanted:
            raise InterruptionError('interrupted; everything it started has ended.')

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_wanted = True
