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

"""Ctrl-C in a program that works for minutes."""

import signal
import sys
from types import FrameType
from typing import Any

from tqdm import tqdm


class StopRequest:
    """Ctrl-C: the first one ends the run after the answer that is being given, the second one at once."""

    def __init__(self, message: str) -> None:
        """Start without a request. message: printed at the first one."""
        self.is_set = False
        self._message = message
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> 'StopRequest':
        """Take SIGINT and SIGTERM."""
        self._before = {each: signal.signal(each, self._take) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
        tqdm.write(self._message, file=sys.stderr)
