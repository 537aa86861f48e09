"""What refreshes cost between two diagnostics."""

from collections.abc import Iterable
from threading import Lock

from vlm_reuse_node.scene.refresh import Refresh


class RefreshWindow:
    """Adds up refreshes on the model's thread until diagnostics take them."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = Lock()
        self._refreshes: list[Refresh] = []
        self._deferred: dict[str, int] = {}  # visual tokens, by camera

    def add(self, refresh: Refresh) -> None:
        """Count one."""
        with self._lock:
            self._refreshes.append(refresh)
            self._deferred[refresh.camera] = refresh.visual_tokens_deferred

    def take(self, cameras: Iterable[str]) -> tuple[list[Refresh], int]:
        """Everything since the last call, and the visual tokens of these cameras that are deferred now."""
        with self._lock:
            taken, self._refreshes = self._refreshes, []
            return taken, sum(self._deferred.get(camera, 0) for camera in cameras)

    def forget(self, camera: str = '') -> None:
        """A camera ('': every one) begins anew, with nothing deferred."""
        with self._lock:
            self._deferred = {name: count for name, count in self._deferred.items() if camera not in ('', name)}
