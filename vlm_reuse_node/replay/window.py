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

"""The pictures of the last seconds, as baselines with several pictures choose from them."""

from collections import deque

from vlm_reuse_node.scene.frame import Frame

PICTURES = 4
KEPT = 32


class Window:
    """Remembers one camera's last pictures: the newest few, and of the others about 32 over the window's length."""

    def __init__(self, seconds: float) -> None:
        """Start empty. seconds: the window's length."""
        self._length_ns = round(1e9 * seconds)
        self._newest: deque[Frame] = deque(maxlen=PICTURES)
        self._thinned: deque[Frame] = deque()

    @property
    def newest(self) -> Frame:
        """The newest picture."""
        return self._newest[-1]

    def add(self, frame: Frame) -> None:
        """Take the next picture."""
        self._newest.append(frame)
        if not self._thinned or frame.stamp_ns - self._thinned[-1].stamp_ns >= self._length_ns / KEPT:
            self._thinned.append(frame)
        # One picture from before the window stays: it is what was seen when the window began.
        while len(self._thinned) > 1 and self._thinned[1].stamp_ns <= frame.stamp_ns - self._length_ns:
            self._thinned.popleft()

    def forget(self) -> None:
        """Forget all pictures."""
        self._newest.clear()
        self._thinned.clear()

    def last(self) -> list[Frame]:
        """Return the last four pictures, oldest first."""
        return list(self._newest)

    def spread(self) -> list[Frame]:
        """Return four pictures evenly spread over the window, oldest first and newest last; fewer at the start."""
        step_ns = self._length_ns / (PICTURES - 1)
        chosen = {self.newest.stamp_ns: self.newest}
        for number in range(1, PICTURES):
            before_ns = self.newest.stamp_ns - number * step_ns
            seen = [frame for frame in self._thinned if frame.stamp_ns <= before_ns]
            if seen:
                chosen[seen[-1].stamp_ns] = seen[-1]
        return [chosen[stamp_ns] for stamp_ns in sorted(chosen)]
