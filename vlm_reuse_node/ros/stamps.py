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

"""Stamps that tell nothing: such a picture counts as taken when it arrived."""

from dataclasses import replace

import numpy as np

from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.lookout import RESTARTED_NS

# No camera's clock is ahead of the node's by more than this. The replay takes such a step for a clock that was set.
MOST_AHEAD_NS = 86_400_000_000_000
NONE = 'sends no stamps'
IMPOSSIBLE = 'sends impossible stamps (negative, or more than a day in the future)'
STANDING = 'stamps all its pictures with the same time'


class Stamps:
    """Judges one camera's stamps, as the replay's `CameraClock` does; a frozen picture is told apart live only.

    A stamp that comes again within RESTARTED_NS is a repeated picture. After that the stamps stand still. But a camera
    that has sent other stamps and now repeats one picture is frozen: its picture gets old, as its stamp says.
    Small steps back are left to the lookout, which skips such pictures.
    trouble: what is wrong with the newest stamp; '' when nothing is.
    """

    def __init__(self) -> None:
        """Start before the first picture."""
        self.trouble = ''
        self._first: Frame | None = None  # the first with the newest stamp
        self._since_s = 0.0  # when it arrived, steady clock
        self._have_moved = self._are_standing = False

    def place(self, frame: Frame, received_ns: int, steady_s: float) -> Frame:
        """Return the frame with its time of arrival, which is also its stamp if its own tells nothing.

        received_ns: on the node's clock; 0: nobody has told the node the time yet. steady_s: on the steady clock.
        """
        is_ahead = received_ns > 0 and frame.stamp_ns - received_ns > MOST_AHEAD_NS
        if frame.stamp_ns == 0:
            self.trouble = NONE
        elif frame.stamp_ns < 0 or is_ahead:
            self.trouble = IMPOSSIBLE
        else:
            self.trouble = STANDING if self._stands(frame, steady_s) else ''
        stamp_ns = received_ns if self.trouble else frame.stamp_ns
        return replace(frame, stamp_ns=stamp_ns, received_ns=received_ns)

    def _stands(self, frame: Frame, steady_s: float) -> bool:
        if self._first is None or frame.stamp_ns != self._first.stamp_ns:
            self._have_moved = self._first is not None
            self._first, self._since_s, self._are_standing = frame, steady_s, False
            return False
        if not self._are_standing and 1e9 * (steady_s - self._since_s) > RESTARTED_NS:
            self._are_standing = not (self._have_moved and np.array_equal(frame.rgb, self._first.rgb))
        return self._are_standing
