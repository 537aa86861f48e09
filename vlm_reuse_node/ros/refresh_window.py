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

"""The looks and refreshes between two diagnostics messages."""

from collections.abc import Iterable
from threading import Lock

from vlm_reuse_node.scene.refresh import Refresh


class RefreshWindow:
    """Collects looks and refreshes from the worker's threads until the diagnostics take them."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = Lock()
        self._refreshes: list[Refresh] = []
        self._stale: dict[str, int] = {}  # stale visual tokens at the last look, by camera

    def add(self, refresh: Refresh) -> None:
        """Add one look or refresh."""
        with self._lock:
            self._refreshes.append(refresh)
            self._stale[refresh.camera] = refresh.visual_tokens_stale

    def take(self, cameras: Iterable[str]) -> tuple[list[Refresh], int]:
        """Take what was added since the last call, and the number of these cameras' visual tokens that are stale."""
        with self._lock:
            taken, self._refreshes = self._refreshes, []
            return taken, sum(self._stale.get(camera, 0) for camera in cameras)

    def forget(self, camera: str = '') -> None:
        """Forget the stale tokens of a camera. camera '': every camera."""
        with self._lock:
            self._stale = {name: count for name, count in self._stale.items() if camera not in ('', name)}
