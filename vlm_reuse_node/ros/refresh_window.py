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

"""The refreshes between two diagnostics messages."""

from collections.abc import Iterable
from threading import Lock

from vlm_reuse_node.scene.refresh import Refresh


class RefreshWindow:
    """Collects refreshes from the model's thread until the diagnostics take them."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = Lock()
        self._refreshes: list[Refresh] = []
        self._deferred: dict[str, int] = {}  # deferred visual tokens of the last refresh, by camera

    def add(self, refresh: Refresh) -> None:
        """Add one refresh."""
        with self._lock:
            self._refreshes.append(refresh)
            self._deferred[refresh.camera] = refresh.visual_tokens_deferred

    def take(self, cameras: Iterable[str]) -> tuple[list[Refresh], int]:
        """Take the refreshes since the last call, and the number of these cameras' visual tokens that are deferred."""
        with self._lock:
            taken, self._refreshes = self._refreshes, []
            return taken, sum(self._deferred.get(camera, 0) for camera in cameras)

    def forget(self, camera: str = '') -> None:
        """Forget the deferred tokens of a camera. camera '': every camera."""
        with self._lock:
            self._deferred = {name: count for name, count in self._deferred.items() if camera not in ('', name)}
