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

"""The time that pictures and questions are compared on: the node's clock, also while simulated time stands still."""

import time
from collections.abc import Callable

from rclpy.clock import Clock, JumpThreshold, ROSClock
from rclpy.duration import Duration

from vlm_reuse_node.scene.lookout import RESTARTED_NS

# Simulated time that has not moved for so long stands still. /clock usually comes ten times a second or more.
STANDS_STILL_S = 1.0
MISSING = (
    'use_sim_time is set, but no message has arrived on /clock, so the age of a picture is unknown. Publish /clock '
    "('ros2 bag play --clock', or the simulator), or set use_sim_time to false."
)


class NodeTime:
    """Reads the node's clock. While simulated time stands still, it goes on as the steady clock does.

    So a camera that died together with `/clock` gets old. Read it at least once a second, on one thread: time that
    stands still is found by comparing with the last reading.
    """

    def __init__(self, clock: Clock) -> None:
        """Begin to read. clock: of the node."""
        self._clock = clock
        self._read_ns, self._since_s = clock.now().nanoseconds, time.monotonic()

    def now_ns(self) -> int:
        """The time now, nanoseconds."""
        stands_s = self.stands_s()
        return self._read_ns + round(1e9 * stands_s)

    def on_jump_back(self, callback: Callable[[], None]) -> None:
        """Call back whenever time has jumped back by more than jitter, or has changed its source."""
        backwards = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-RESTARTED_NS), on_clock_change=True
        )
        self._jumps = self._clock.create_jump_callback(backwards, post_callback=lambda jump: callback())

    @property
    def is_missing(self) -> bool:
        """Whether simulated time is to be used, and nobody has told it yet."""
        return self._is_simulated and self._read() == 0

    @property
    def trouble(self) -> str:
        """What is wrong with simulated time, for people; '' when nothing is."""
        if self.is_missing:
            return MISSING
        if not (stands_s := self.stands_s()):
            return ''
        return (
            f'/clock has stood still at {self._read_ns / 1e9:.2f} s for {stands_s:.1f} s: the bag is paused, or the '
            'simulator has stopped. Until it goes on, ages count real time.'
        )

    def stands_s(self) -> float:
        """How long simulated time has stood still, seconds of the steady clock; 0 while it moves."""
        self._read()
        stands_s = time.monotonic() - self._since_s
        return stands_s if self._is_simulated and stands_s > STANDS_STILL_S else 0.0

    @property
    def _is_simulated(self) -> bool:
        return isinstance(self._clock, ROSClock) and self._clock.ros_time_is_active

    def _read(self) -> int:
        now_ns = self._clock.now().nanoseconds
        if now_ns != self._read_ns:
            self._read_ns, self._since_s = now_ns, time.monotonic()
        return now_ns
