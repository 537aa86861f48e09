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

"""How busy the thread is that runs the node's callbacks."""

import time
from collections import deque

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

PERIOD_S, REMEMBERED = 0.05, 20


class ExecutorLoad:
    """Calls back regularly, and notes how late it is called."""

    def __init__(self, node: Node) -> None:
        """Start."""
        self._called_s: deque[float] = deque(maxlen=REMEMBERED + 1)
        node.create_timer(PERIOD_S, self.note, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def note(self) -> None:
        """Note a call."""
        self._called_s.append(time.monotonic())

    @property
    def share(self) -> float:
        """The share of the last second or so in which the thread did not come to its next callback."""
        if len(self._called_s) < 2:
            return 0.0
        due_s = PERIOD_S * (len(self._called_s) - 1)
        return max(0.0, 1 - due_s / max(due_s, time.monotonic() - self._called_s[0]))
