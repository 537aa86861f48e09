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

"""The ROS 2 node: its life cycle, and the connections between cameras, services and the worker.

The executor's thread converts, hands over and publishes. The model runs on its own thread (serving/worker.py).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, InvalidRequestError, VlmReuseError
from vlm_reuse_node.ros.ask_server import AskServer, answered
from vlm_reuse_node.ros.camera_diagnostics import camera_trouble
from vlm_reuse_node.ros.cameras import Cameras
from vlm_reuse_node.ros.diagnostics import node_status
from vlm_reuse_node.ros.graph import twins_of
from vlm_reuse_node.ros.messages import question_of
from vlm_reuse_node.ros.monitor import CameraMonitor, Monitor
from vlm_reuse_node.ros.node_time import NodeTime
from vlm_reuse_node.ros.notices import Notices
from vlm_reuse_node.ros.parameters import check_qos_overrides_are_used, declare_parameters, watch_parameters
from vlm_reuse_node.ros.plain_logger import PlainLogNode
from vlm_reuse_node.ros.shutdown import while_ros_runs
from vlm_reuse_node.ros.stage import Stage, remedy_of
from vlm_reuse_node.ros.watch_server import WatchServer
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.serving.watch import Watch
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.progress import Progress

if TYPE_CHECKING:
    from vlm_reuse_node.serving.worker import ModelWorker

NODE_NAME = 'vlm_reuse_node'
SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)


class SceneNode(PlainLogNode):
    """Answers planners about live cameras.

    A lifecycle node: configure loads the model, activate subscribes to the cameras, deactivate keeps the state, cleanup
    frees everything. `start` configures and activates. The services appear when the first model is loaded. While the
    node is not active, they answer INACTIVE.
    """

    def __init__(
        self, name: str = NODE_NAME, *, on_active: Callable[[], None] = lambda: None, **node_arguments: Any
    ) -> None:
        """Declare the parameters and publish diagnostics. Nothing is loaded or subscribed yet.

        on_active: called every time the node has become active.
        Raises ConfigError for an unknown or wrong parameter.
        """
        super().__init__(name, **node_arguments)
        self.config = declare_parameters(self)
        watch_parameters(
            self, lambda: self.config, self._reconfigure, lambda: self.stage in (Stage.INACTIVE, Stage.ACTIVE)
        )
        self.stage = Stage.UNCONFIGURED
        self._on_active = on_active
        self._failure: Exception | None = None  # of the last transition
        self._worker: ModelWorker | None = None
        self._loading: ModelWorker | None = None  # the worker whose model is being loaded
        # Created with the first model, and kept through cleanup and configure, so that clients keep their services.
        self._cameras: Cameras | None = None
        self._camera_monitor: CameraMonitor | None = None
        self._watches: WatchServer | None = None
        self._asks: AskServer | None = None
        self._time = NodeTime(self.get_clock())
        self._notices = Notices(self.get_logger())
        self._monitor = Monitor(self, self._statuses)
        self._time.on_jump_back(self._on_time_jump)

    def start(self) -> None:
        """Configure and activate: load the model, then serve and subscribe.

        Raises ModelError when the model cannot be loaded, and ConfigError for a wrong QoS override.
        """
        if self.trigger_configure() != SUCCESS or self.trigger_activate() != SUCCESS:
            raise self._failure

    def say_what_it_waits_for(self) -> None:
        """Log that nothing is loaded before somebody configures the node, and by which command."""
        self.get_logger().info(f'autostart is false: waiting for a lifecycle manager. {self._inactive()}')

    def dismiss(self) -> None:
        """Stop the worker and refuse new questions. The executor then answers the open questions with CANCELLED."""
        self._transition(self._unload, Stage.FINALIZED, Stage.CLEANING_UP)

    def close(self) -> None:
        """End the model's thread and destroy the node. Open questions are dropped; `dismiss` answers them first."""
        self._unload()
        if self._asks:
            self._asks.destroy()
        self.destroy_node()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and serve. The node stays unconfigured when the model cannot be loaded."""
        return self._transition(self._load, Stage.INACTIVE, Stage.CONFIGURING)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take pictures and questions."""
        done = self._transition(self._subscribe, Stage.ACTIVE)
        if done == SUCCESS:
            topics = ', '.join(self._cameras.topics)
            self.get_logger().info(f'Ready: {self._worker.stats().model} looks at {topics}.')
            self._on_active()
        return done

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop taking pictures and questions. The states are kept, and open questions are answered."""
        return self._transition(self._cameras.unsubscribe, Stage.INACTIVE)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model, the states and the standing questions."""
        return self._transition(self._clean_up, Stage.UNCONFIGURED, Stage.CLEANING_UP)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, from any state. The node cannot be configured again."""
        return self._transition(self._unload, Stage.FINALIZED, Stage.CLEANING_UP)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything and return to unconfigured. Diagnostics continue to report the error."""
        failure = self._failure
        done = self._transition(self._clean_up, Stage.UNCONFIGURED, Stage.CLEANING_UP)
        self._failure = self._failure or failure
        return done

    def _transition(
        self, change: Callable[[], None], after: Stage, during: Stage | None = None
    ) -> TransitionCallbackReturn:
        """Run a transition and log its error, which rclpy alone would drop silently."""
        before = self.stage
        self.stage, self._failure = during or before, None
        try:
            change()
        except Exception as error:
            self.stage, self._failure = before, error
            is_ours = isinstance(error, VlmReuseError)
            for line in [str(error)] if is_ours else traceback.format_exc().splitlines():
                self.get_logger().error(line)
            return FAILURE if is_ours else ERROR
        self.stage = after
        return SUCCESS

    def _load(self) -> None:
        self.get_logger().info(f"Loading the model '{self.config.model}'.")
        self._monitor.publish()
        # This imports mlx and transformers, which takes seconds. A wrong parameter is reported before that.
        from vlm_reuse_node.serving.worker import ModelWorker

        if self._cameras is None:
            self._cameras = Cameras(self, self._observe, self._forget, self._time)
            self._camera_monitor = CameraMonitor(self._cameras, Notices(self.get_logger()))
        cameras = self._cameras
        worker = ModelWorker(self.config, cameras.on_refresh, cameras.on_refused, self._on_watch, cameras.on_dropped)
        self._loading = worker
        try:
            worker.start(self._monitor.publish)
        finally:
            self._loading = None
        self._worker = worker
        try:
            self._serve()
            for name in self.config.cameras:
                self._cameras.join(name, self.config)
        except Exception:
            self._unload()
            raise

    def _unload(self) -> None:
        if self._cameras:
            self._cameras.keep(())
        if self._worker:
            self._worker.stop(self._monitor.publish)
            self._worker = None

    def _clean_up(self) -> None:
        self._unload()
        if self._watches:
            self._watches.forget()

    def _subscribe(self) -> None:
        try:
            self._cameras.subscribe()
            check_qos_overrides_are_used(self)
        except ConfigError:
            self._cameras.unsubscribe()
            raise

    def _serve(self) -> None:
        if self._asks:
            return
        self._watches = WatchServer(self, self._active_worker, self._standing, self._time.now_ns)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self._asks = AskServer(self, self._ask, self._with_reason)

    def _reconfigure(self, config: Config) -> None:
        """Apply parameters that changed while the node runs."""
        self.config = config
        if self._worker:
            self._worker.configure(config)
            self._cameras.configure(config, is_active=self.stage is Stage.ACTIVE)

    def _active_worker(self) -> ModelWorker:
        """The worker. Raises InvalidRequestError when the node is not active."""
        if self.stage is not Stage.ACTIVE:
            raise InvalidRequestError(self._inactive())
        return self._worker

    def _standing(self) -> list[Watch]:
        """The standing questions; may be called in every state of the node."""
        return self._worker.watches() if self._worker else []

    def _inactive(self) -> str:
        """A sentence that says why the node is not active, and what to do."""
        progress = self._loading.loading if self._loading else ''
        return remedy_of(self.stage, self.get_fully_qualified_name(), progress)

    def _ask(
        self, request: AskScene.Request, cold: bool, cancel: Event | None, listener: Callable[[Progress], None] | None
    ) -> Future[Answer]:
        """Queue a request's question for the model."""
        if self.stage is not Stage.ACTIVE:
            return answered(Answer(Status.INACTIVE, self._inactive(), camera=request.camera))
        if self._time.is_missing and (state := self._cameras.state(request.camera or self.config.cameras[0])):
            status = Status.NO_IMAGE if state.silent_s is None else Status.STALE
            return answered(Answer(status, camera=state.name))
        ask = self._worker.ask_cold if cold else self._worker.ask
        return ask(request.camera, question_of(request), self._time.now_ns(), cancel, listener)

    def _observe(self, frame: Frame) -> None:
        self._worker.observe(frame)

    def _forget(self, camera: str = '') -> None:
        """Reset a camera. camera '': every camera."""
        if self._worker:
            self._worker.reset(camera)
            self._cameras.refreshes.forget(camera)

    def _with_reason(self, answer: Answer) -> Answer:
        """Add to the message why there is no recent picture and what to do, if the camera's counts show it."""
        if (
            answer.status not in (Status.NO_IMAGE, Status.STALE)
            or (state := self._cameras.state(answer.camera)) is None
        ):
            return answer
        _, reason = camera_trouble(state, self.config.max_age_s)
        return replace(answer, message=f'{answer.message} {reason}'.strip())

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._forget()
        response.success = self._worker is not None
        response.message = (
            f'The state of {", ".join(self.config.cameras)} was reset; the next picture is computed in full.'
            if response.success
            else self._inactive()
        )
        return response

    def _on_watch(self, watch: Watch, before: Answer | None) -> None:
        with while_ros_runs(self):
            self._watches.publish(watch, before)

    def _statuses(self, seconds: float) -> list[DiagnosticStatus]:
        name = self.get_fully_qualified_name().lstrip('/')
        twin, clock = twins_of(self), self._time.trouble
        self._notices.see({text.partition(' for ')[0]: text for text in (twin, clock) if text})
        statuses = [node_status(name, self.stage, self._inactive(), self._failure, twin)]
        if self._worker:
            is_active = self.stage is Stage.ACTIVE
            statuses += self._camera_monitor.statuses(name, self._worker.stats(), self.config, is_active, seconds)
        return statuses

    def _on_time_jump(self) -> None:
        """Reset every camera when (simulated) time jumps back, as with a looping bag. Ages would be wrong otherwise."""
        if self._worker is None:
            return
        self.get_logger().info(
            'Time jumped back or changed its source; every camera is reset.', throttle_duration_sec=5.0
        )
        self._cameras.forget_time()
        self._forget()
