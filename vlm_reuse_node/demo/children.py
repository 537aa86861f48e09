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

"""Processes that the demo starts. Each writes to a log and is ended by its pid; none outlives the demo."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vlm_reuse_node.errors import VlmReuseError

LOG_LINES_SHOWN = 12
PATIENCE_S = {signal.SIGINT: 10.0, signal.SIGTERM: 3.0, signal.SIGKILL: 3.0}
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None


class ChildError(VlmReuseError):
    """A process that was needed has ended."""


class Child:
    """One process. As a context manager it makes sure that the process has ended when the block is left."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches the demo alone and it ends in order."""
        self.name = name
        self.log = log
        with log.open('wb') as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=partial(_end_with_parent, os.getpid()),
            )

    def __enter__(self) -> 'Child':
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Its number in the operating system."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it does not run any more."""
        return self._process.poll() is not None

    def check(self) -> None:
        """Raise ChildError with its last words when it has ended, unless it ended well."""
        if self._process.poll():
            raise ChildError(
                f'The {self.name} ended with exit code {self._process.returncode}. The end of '
                f"'{self.log}':\n{self.tail()}"
            )

    def check_running(self) -> None:
        """Raise ChildError with its last words when it has ended at all."""
        self.check()
        if self.has_ended:
            raise ChildError(f"The {self.name} ended by itself, too early. The end of '{self.log}':\n{self.tail()}")

    def has_said(self, words: str) -> bool:
        """Whether the last lines of its log contain these words."""
        return words in self.tail()

    def end(self) -> None:
        """Ask the process to end, more firmly each time, and wait for it."""
        for request, patience_s in PATIENCE_S.items():
            if self.has_ended:
                return
            self._process.send_signal(request)
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue

    def tail(self) -> str:
        """Return the last lines of its log, indented."""
        lines = self.log.read_text(encoding='utf-8', errors='replace').splitlines()[-LOG_LINES_SHOWN:]
        return '\n'.join(f'  {line}' for line in lines) or '  (it said nothing)'


def _end_with_parent(parent: int) -> None:
    """In the child: restore the default signals; on Linux, end it when the demo is killed and cannot do so."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before that
            os.kill(os.getpid(), signal.SIGTERM)
