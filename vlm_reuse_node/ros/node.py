"""The ROS 2 node: its life cycle, and who hands what to whom.

The executor's thread only converts, hands over and publishes; the model has a thread of its own (serving/worker.py).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, InvalidRequestError, VlmReuseError
from vlm_reuse_node.ros.ask_server import AskServer, answered
from vlm_reuse_node.ros.camera_input import RESTARTED_NS
from vlm_reuse_node.ros.cameras import Cameras
from vlm_reuse_node.ros.diagnostics import camera_trouble, node_status
from vlm_reuse_node.ros.messages import question_of
from vlm_reuse_node.ros.monitor import CameraMonitor, Monitor
from vlm_reuse_node.ros.parameters import check_qos_overrides_are_used, declare_parameters, watch_parameters
from vlm_reuse_node.ros.shutdown import while_ros_runs
from vlm_reuse_node.ros.stage import Stage
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


class SceneNode(LifecycleNode):
    """Answers planners about live cameras.

    A lifecycle node: configure loads the model, activate subscribes to the cameras, deactivate keeps the state, cleanup
    frees everything. `start` does the first two. The services appear with the first model, so that one that exists
    answers; when the node is not active they answer INACTIVE.
    """

    def __init__(self, name: str = NODE_NAME, *, on_active: Callable[[], None] = lambda: None, **node_arguments: Any):
        """Declare the parameters; nothing is loaded and nothing is subscribed yet, but diagnostics are published.

        on_active: called whenever pictures and questions are taken from then on.
        Raises ConfigError for a parameter that is unknown or wrong.
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
        # Made with the first model, and kept: clients that know a service keep it through cleanup and configure.
        self._cameras: Cameras | None = None
        self._camera_monitor: CameraMonitor | None = None
        self._watches: WatchServer | None = None
        self._asks: AskServer | None = None
        self._monitor = Monitor(self, self._statuses)
        self._watch_time()

    def start(self) -> None:
        """Load the model, then publish, serve and subscribe.

        Raises ModelError when the model cannot be loaded, ConfigError for a QoS override that is wrong.
        """
        if self.trigger_configure() != SUCCESS or self.trigger_activate() != SUCCESS:
            raise self._failure

    def dismiss(self) -> None:
        """Take nothing more; open questions get their answer, CANCELLED, when the executor goes on."""
        self._transition(self._unload, Stage.FINALIZED, Stage.CLEANING_UP)

    def close(self) -> None:
        """End the model's thread and destroy the node; open questions are dropped, see `dismiss`."""
        self._unload()
        if self._asks:
            self._asks.destroy()
        self.destroy_node()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and serve; a model that cannot be loaded leaves the node unconfigured."""
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
        """Take no more pictures and questions; what the model has seen is kept, open questions are answered."""
        return self._transition(self._cameras.unsubscribe, Stage.INACTIVE)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model, its state and the standing questions."""
        return self._transition(self._clean_up, Stage.UNCONFIGURED, Stage.CLEANING_UP)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleanup, from any state and for good."""
        return self._transition(self._unload, Stage.FINALIZED, Stage.CLEANING_UP)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, with nothing held; diagnostics go on to say what went wrong."""
        failure = self._failure
        done = self._transition(self._clean_up, Stage.UNCONFIGURED, Stage.CLEANING_UP)
        self._failure = self._failure or failure
        return done

    def _transition(
        self, change: Callable[[], None], after: Stage, during: Stage | None = None
    ) -> TransitionCallbackReturn:
        """Change the node's state; rclpy alone would drop what is raised without a word."""
        before = self.stage
        self.stage, self._failure = during or before, None
        try:
            change()
        except Exception as error:
            self.stage, self._failure = before, error
            is_ours = isinstance(error, VlmReuseError)
            self.get_logger().error(str(error) if is_ours else traceback.format_exc())
            return FAILURE if is_ours else ERROR
        self.stage = after
        return SUCCESS

    def _load(self) -> None:
        self.get_logger().info(f"Loading the model '{self.config.model}'.")
        self._monitor.publish()
        # Imports mlx and transformers, seconds that a wrong parameter need not wait for.
        from vlm_reuse_node.serving.worker import ModelWorker

        if self._cameras is None:
            self._cameras = Cameras(self, self._observe, self._forget)
            self._camera_monitor = CameraMonitor(self._cameras)
        worker = ModelWorker(self.config, self._cameras.on_refresh, self._cameras.on_refused, self._on_watch)
        worker.start(self._monitor.publish)
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
        self._watches = WatchServer(self, self._active_worker, self._standing)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self._asks = AskServer(self, self._ask, self._with_reason)

    def _reconfigure(self, config: Config) -> None:
        """Take parameters that changed while the node runs."""
        self.config = config
        if self._worker:
            self._worker.configure(config)
            self._cameras.configure(config, is_active=self.stage is Stage.ACTIVE)

    def _active_worker(self) -> ModelWorker:
        """The model's thread. Raises InvalidRequestError when the node is not active."""
        if self.stage is not Stage.ACTIVE:
            raise InvalidRequestError(self._inactive())
        return self._worker

    def _standing(self) -> list[Watch]:
        """The standing questions, in every state of the node."""
        return self._worker.watches() if self._worker else []

    def _inactive(self) -> str:
        """What the node waits for, when it is not active."""
        if self.stage in (Stage.CONFIGURING, Stage.CLEANING_UP):
            return f'The node is {self.stage}, which takes a while; wait.'
        if self.stage is Stage.FINALIZED:
            return 'The node was shut down for good; start its process again.'
        name = self.get_fully_qualified_name()
        transition = 'activate' if self.stage is Stage.INACTIVE else 'configure'
        return f"The node is {self.stage}: 'ros2 lifecycle set {name} {transition}' is what it waits for."

    def _ask(
        self, request: AskScene.Request, cold: bool, cancel: Event | None, listener: Callable[[Progress], None] | None
    ) -> Future[Answer]:
        """Put a request's question to the model's thread."""
        if self.stage is not Stage.ACTIVE:
            return answered(Answer(Status.INACTIVE, self._inactive(), camera=request.camera))
        ask = self._worker.ask_cold if cold else self._worker.ask
        return ask(request.camera, question_of(request), self.get_clock().now().nanoseconds, cancel, listener)

    def _observe(self, frame: Frame) -> bool:
        return self._worker.observe(frame)

    def _forget(self, camera: str = '') -> None:
        """Have a camera ('': every one) begin anew."""
        if self._worker:
            self._worker.reset(camera)
            self._cameras.refreshes.forget(camera)

    def _with_reason(self, answer: Answer) -> Answer:
        """Say why there is no fresh picture, and what to do, where the camera's own counts know it."""
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
            f'The next picture of {", ".join(self.config.cameras)} is read anew.'
            if response.success
            else self._inactive()
        )
        return response

    def _on_watch(self, watch: Watch, before: Answer | None) -> None:
        with while_ros_runs(self):
            self._watches.publish(watch, before)

    def _statuses(self, seconds: float) -> list[DiagnosticStatus]:
        name = self.get_fully_qualified_name().lstrip('/')
        statuses = [node_status(name, self.stage, self._inactive(), self._failure)]
        if self._worker:
            is_active = self.stage is Stage.ACTIVE
            statuses += self._camera_monitor.statuses(name, self._worker.stats(), self.config, is_active, seconds)
        return statuses

    def _watch_time(self) -> None:
        """Rebuild every state when (simulated) time jumps back: ages would be wrong, and a bag may be looping."""
        backwards = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-RESTARTED_NS), on_clock_change=True
        )
        self._jumps = self.get_clock().create_jump_callback(backwards, post_callback=self._on_time_jump)

    def _on_time_jump(self, jump: TimeJump) -> None:
        if self._worker is None:
            return
        self.get_logger().info(
            'Time jumped back or changed its source; every camera starts anew.', throttle_duration_sec=5.0
        )
        self._cameras.forget_time()
        self._forget()
