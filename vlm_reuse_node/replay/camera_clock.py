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

"""One camera's stamps as times of the bag, across clocks that are set, start anew, stand still or are missing."""

from collections import Counter

from vlm_reuse_node.scene.lookout import RESTARTED_NS

# A stamp that runs ahead of the recorder's clock by this much more than any before comes from a clock that was set.
# A recorder that falls behind makes stamps late on its clock, never early.
SET_NS = 5_000_000_000
# No recorder pauses for longer than this: its own clock was set.
LONGEST_PAUSE_NS = 86_400_000_000_000
# What passed between two pictures where no clock tells.
UNKNOWN_NS = 1_000_000_000
SET_BACK, SET_FORWARD, STOOD_STILL = 'set back', 'set forward', 'stood still'


class CameraClock:
    """Gives each picture its time in the bag: that of its stamp, in stretches of an undisturbed clock.

    A new stretch begins where the stamps jump. It follows the one before after as much time as passed on the
    recorder's clock. All times are nanoseconds.
    steps: the jumps, by kind. restarts: those on which the node would forget its state, because time went back.
    """

    def __init__(self, time_ns: int, stamp_ns: int, recorded_ns: int) -> None:
        """Start with the first picture, at `time_ns`."""
        self.steps: Counter[str] = Counter()
        self._stands_still = False
        self._stamp_ns = self._recorded_ns = self._shift_ns = self._most_ahead_ns = 0
        self._begin(time_ns, stamp_ns, recorded_ns)

    @property
    def restarts(self) -> int:
        """How often time went back."""
        return self.steps[SET_BACK]

    def place(self, stamp_ns: int, recorded_ns: int) -> int | None:
        """Return the next picture's time; None for one that is not newer than the one before."""
        after_ns = stamp_ns - self._stamp_ns
        passed_ns = recorded_ns - self._recorded_ns
        if after_ns == 0:
            if not self._stands_still and passed_ns <= RESTARTED_NS:
                return None
            return self._step('' if self._stands_still else STOOD_STILL, stamp_ns, recorded_ns)
        if self._stands_still:
            return self._step('', stamp_ns, recorded_ns)
        if after_ns < -RESTARTED_NS:
            return self._step(SET_BACK, stamp_ns, recorded_ns)
        if after_ns < 0:
            return None
        ahead_ns = stamp_ns - recorded_ns
        if after_ns > LONGEST_PAUSE_NS or (passed_ns > 0 and ahead_ns > self._most_ahead_ns + SET_NS):
            return self._step(SET_FORWARD, stamp_ns, recorded_ns)
        self._most_ahead_ns = max(self._most_ahead_ns, ahead_ns)
        self._stamp_ns, self._recorded_ns = stamp_ns, recorded_ns
        return stamp_ns + self._shift_ns

    def _step(self, kind: str, stamp_ns: int, recorded_ns: int) -> int:
        """Begin a new stretch."""
        if kind:
            self.steps[kind] += 1
        self._stands_still = stamp_ns == self._stamp_ns
        passed_ns = recorded_ns - self._recorded_ns
        is_known = 0 < passed_ns <= LONGEST_PAUSE_NS
        time_ns = self._stamp_ns + self._shift_ns + (passed_ns if is_known else UNKNOWN_NS)
        self._begin(time_ns, stamp_ns, recorded_ns)
        return time_ns

    def _begin(self, time_ns: int, stamp_ns: int, recorded_ns: int) -> None:
        self._stamp_ns, self._recorded_ns = stamp_ns, recorded_ns
        self._shift_ns = time_ns - stamp_ns
        self._most_ahead_ns = stamp_ns - recorded_ns
