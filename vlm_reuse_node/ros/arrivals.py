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

"""Which pictures were sent and never came."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

# Stamps are compared over so many pictures. Their rhythm is steady when half of the steps are this close to it.
STAMPS, STEADY = 60, 0.25
# Publishers that are remembered.
MOST_PUBLISHERS = 8
# Where ROS does not say who sent a picture: a larger step between two numbers means another publisher, and after so
# many pictures of one publisher the others have gone.
MOST_STEP, ALONE = 1000, 30


class Arrivals:
    """Counts the gaps in what one camera's publishers sent.

    Most middlewares number what a publisher sends. Else the stamps tell: a step of several times their steady rhythm
    is a gap. A camera without a steady rhythm has no gaps then.
    missed: pictures that were sent and not received: they were lost on their way, or a newer one replaced them while
    the node's thread was busy.
    mixed: pictures of a publisher that came again after one of another. The ROS graph shows a process that was killed
    for some seconds more; the one that replaces it mixes with nothing.
    """

    def __init__(self) -> None:
        """Start with nothing received."""
        self.missed = self.mixed = 0
        self._numbers: dict[object, int | None] = {}  # the newest of each publisher; the last that sent comes last
        self._stamp_ns = 0
        self._steps_ns: deque[int] = deque(maxlen=STAMPS)
        self._in_a_row = 0  # pictures since another publisher sent one

    def note(self, info: Mapping[str, Any], stamp_ns: int) -> None:
        """Note a received picture. info: the message's, from rclpy. stamp_ns: its own."""
        number = info.get('publication_sequence_number')
        publisher = self._publisher_of(info, number)
        is_other = publisher != next(reversed(self._numbers), publisher)
        self._in_a_row = 0 if is_other else self._in_a_row + 1
        self.mixed += is_other and publisher in self._numbers
        before = self._numbers.pop(publisher, number)
        self._numbers = dict(list(self._numbers.items())[1 - MOST_PUBLISHERS :]) | {publisher: number}
        self.missed += self._by_stamp(stamp_ns) if number is None else max(0, number - before - 1)

    def forget_publishers(self) -> None:
        """Begin anew after a time without a subscription: what was sent meanwhile is not lost."""
        self._numbers, self._stamp_ns = {}, 0

    def _publisher_of(self, info: Mapping[str, Any], number: int | None) -> object:
        """Who sent a picture. Jazzy does not tell: there the numbers do, as far as they can.

        It is the publisher whose next number this is, or else the last one that sent, or else the one with the largest
        number below this; a new one when this number follows none.
        """
        if number is None or 'publisher_gid' in info:
            return bytes(info.get('publisher_gid', {}).get('data', b''))
        if self._in_a_row > ALONE:
            self._numbers = dict(list(self._numbers.items())[-1:])
        steps = {sender: number - (newest or 0) for sender, newest in reversed(self._numbers.items())}
        steps = {sender: step for sender, step in steps.items() if 0 < step <= MOST_STEP}
        last = next(reversed(self._numbers), None)
        if last in steps and 1 not in steps.values():
            return last
        return min(steps, key=lambda sender: steps[sender], default=object())

    def _by_stamp(self, stamp_ns: int) -> int:
        step_ns, before_ns, self._stamp_ns = stamp_ns - self._stamp_ns, self._stamp_ns, stamp_ns
        if not before_ns or step_ns <= 0:
            return 0
        self._steps_ns.append(step_ns)
        steps = np.array(self._steps_ns)
        rhythm = np.percentile(steps, 25)
        is_steady = len(steps) > 8 and np.mean(np.abs(steps - rhythm) < STEADY * rhythm) >= 0.5
        return max(0, round(step_ns / rhythm) - 1) if is_steady else 0
