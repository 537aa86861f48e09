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

"""The node's cameras: receive pictures; publish refresh budget and overlay of every frame that was looked at."""

from collections.abc import Callable, Iterable

from rclpy.node import Node
from rclpy.qos import QoSProfile
from vlm_reuse_interfaces.msg import RefreshBudget

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, ImageError
from vlm_reuse_node.ros.camera_input import CameraInput
from vlm_reuse_node.ros.camera_state import CameraState
from vlm_reuse_node.ros.executor_load import ExecutorLoad
from vlm_reuse_node.ros.messages import budget_message
from vlm_reuse_node.ros.node_time import NodeTime
from vlm_reuse_node.ros.overlay_output import OverlayOutput
from vlm_reuse_node.ros.parameters import making, overridable
from vlm_reuse_node.ros.refresh_window import RefreshWindow
from vlm_reuse_node.ros.shutdown import while_ros_runs
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh


class Cameras:
    """The cameras, each with a subscription and an overlay topic. They can be added and removed while the node runs.

    refreshes: the refreshes since the last diagnostics message.
    """

    def __init__(
        self, node: Node, observe: Callable[[Frame], None], forget: Callable[[str], None], node_time: NodeTime
    ) -> None:
        """Start without cameras.

        observe: takes a frame.
        forget: called with the name of a camera whose stamps jumped back.
        node_time: the time of pictures and questions.
        Raises ConfigError for an invalid QoS override.
        """
        self._node, self._observe, self._forget, self._time = node, observe, forget, node_time
        self._inputs: dict[str, CameraInput] = {}
        self._overlays: dict[str, OverlayOutput] = {}
        self._load = ExecutorLoad(node)
        self.refreshes = RefreshWindow()
        with making('~/refresh_budget'):
            self._budget_publisher = node.create_publisher(
                RefreshBudget, '~/refresh_budget', QoSProfile(depth=10), qos_overriding_options=overridable()
            )

    @property
    def topics(self) -> list[str]:
        """Full names of the subscribed topics."""
        return [camera.topic for camera in self._inputs.values()]

    def join(self, name: str, config: Config) -> None:
        """Add a camera. An existing camera keeps its counts. Raises ConfigError for an invalid QoS override."""
        if name not in self._inputs:
            self._inputs[name] = CameraInput(
                self._node, name, config, self._observe, self._forget, self._time, self._load
            )
            self.refreshes.forget(name)
        if name not in self._overlays:
            self._overlays[name] = OverlayOutput(self._node, name)

    def keep(self, names: Iterable[str]) -> None:
        """Remove all other cameras."""
        for name in set(self._inputs) - set(names):
            self._inputs.pop(name).unsubscribe()
            if overlay := self._overlays.pop(name, None):
                overlay.destroy()

    def configure(self, config: Config, is_active: bool) -> None:
        """Apply new parameters: add and remove cameras. An error in one camera is logged; the others continue."""
        self.keep(config.cameras)
        for name in config.cameras:
            try:
                self.join(name, config)
                self._inputs[name].max_image_pixels = config.max_image_pixels
                if is_active and not self._inputs[name].is_subscribed:
                    self._inputs[name].subscribe()
            except ConfigError as error:
                self._node.get_logger().error(str(error))

    def subscribe(self) -> None:
        """Receive pictures from now on. Raises ConfigError for an invalid QoS override."""
        for camera in self._inputs.values():
            camera.subscribe()

    def unsubscribe(self) -> None:
        """Stop receiving pictures. The counts stay."""
        for camera in self._inputs.values():
            camera.unsubscribe()

    def forget_time(self) -> None:
        """Accept any next stamp of every camera, because the clock jumped."""
        for camera in self._inputs.values():
            camera.forget_time()

    def states(self) -> dict[str, CameraState]:
        """The current state of each camera. Also adapts the subscriptions to their publishers' reliability."""
        for camera in self._inputs.values():
            camera.follow_publishers()
        return {name: camera.state() for name, camera in self._inputs.items()}

    def state(self, name: str) -> CameraState | None:
        """The current state of one camera; None for an unknown one."""
        camera = self._inputs.get(name)
        return camera.state() if camera else None

    def on_refresh(self, frame: Frame, refresh: Refresh) -> None:
        """Publish on the worker's threads. rclpy publishers may be used on any thread, and the executor stays free."""
        self.refreshes.add(refresh)
        camera = self._inputs.get(frame.camera)
        if camera is None:  # it was just removed
            return
        if refresh.level is Level.REUSE:
            camera.on_looked_at()
        message = budget_message(refresh, camera.received, camera.dropped, camera.refused.total())
        with while_ros_runs(self._node):
            self._budget_publisher.publish(message)
            if overlay := self._overlays.get(frame.camera):
                overlay.publish(frame, refresh)

    def on_refused(self, frame: Frame, error: ImageError) -> None:
        """Count a picture that the model refused. May be called on any thread."""
        if camera := self._inputs.get(frame.camera):
            camera.on_refused(error)

    def on_dropped(self, frame: Frame) -> None:
        """Count a picture that a newer one has replaced. May be called on any thread."""
        if camera := self._inputs.get(frame.camera):
            camera.on_dropped()
