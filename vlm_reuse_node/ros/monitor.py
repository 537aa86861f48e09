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

"""Publishes `/diagnostics` once a second of the steady clock."""

import time
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile

from vlm_reuse_node.config import Config
from vlm_reuse_node.ros.camera_diagnostics import camera_notices, camera_status
from vlm_reuse_node.ros.camera_state import CameraState
from vlm_reuse_node.ros.cameras import Cameras
from vlm_reuse_node.ros.diagnostics import (
    audit_status,
    budget_status,
    memory_status,
    model_status,
)
from vlm_reuse_node.ros.notices import Notices
from vlm_reuse_node.ros.shutdown import while_ros_runs
from vlm_reuse_node.serving.worker_stats import WorkerStats

PERIOD_S = 1.0
# Statuses over which lost pictures are counted: one second at which much begins is no loss that stays.
WINDOW = 5


class Monitor:
    """Publishes the node's statuses. diagnostics.py makes their texts."""

    def __init__(self, node: Node, statuses: Callable[[float], list[DiagnosticStatus]]) -> None:
        """Start. statuses: returns the current statuses; called with the seconds since the last call."""
        self._node, self._statuses = node, statuses
        self._published_s = time.monotonic()
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', QoSProfile(depth=10))
        node.create_timer(PERIOD_S, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def publish(self) -> None:
        """Publish now. Also called directly while the executor is blocked."""
        now_s = time.monotonic()
        seconds = max(now_s - self._published_s, 1e-3)
        self._published_s = now_s
        message = DiagnosticArray(status=self._statuses(seconds))
        message.header.stamp = self._node.get_clock().now().to_msg()
        with while_ros_runs(self._node):
            self._publisher.publish(message)


class CameraMonitor:
    """Makes the statuses of model, cameras, budget, audit and memory while a model is loaded."""

    def __init__(self, cameras: Cameras, notices: Notices) -> None:
        """Start without earlier states. notices: of what only the log says."""
        self._cameras, self._notices = cameras, notices
        self._earlier: dict[str, list[CameraState]] = {}

    def statuses(
        self, name: str, stats: WorkerStats, config: Config, is_active: bool, seconds: float
    ) -> list[DiagnosticStatus]:
        """The current statuses. name: of the node. seconds: since the last call."""
        states = self._cameras.states()
        earlier = {state.name: self._earlier_of(state) for state in states.values()}
        cameras = [
            camera_status(name, state, earlier[state.name], seconds, config.max_age_s) for state in states.values()
        ]
        if is_active:
            each = (camera_notices(state, earlier[state.name]) for state in states.values())
            self._notices.see({key: text for notices in each for key, text in notices.items()})
        self._earlier = {camera: [*earlier[camera][1 - WINDOW :], state] for camera, state in states.items()}
        return [
            model_status(name, stats, config.queue_size),
            *(cameras if is_active else []),
            budget_status(name, *self._cameras.refreshes.take(states), stats.sessions, seconds),
            audit_status(name, stats.sessions, config.max_drift),
            memory_status(name, stats),
        ]

    def _earlier_of(self, state: CameraState) -> list[CameraState]:
        """The camera's states at the last calls. For a camera that was added since then: its current state."""
        earlier = self._earlier.get(state.name, [state])
        return earlier if earlier[-1].received <= state.received else [state]
