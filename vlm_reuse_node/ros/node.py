"""The ROS 2 node: pictures and questions in, answers, refresh budget, overlay and diagnostics out.

The executor's thread only converts, hands over and publishes; the model has a thread of its own (`worker.py`).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from std_srvs.srv import Trigger
from vlm_reuse_interfaces.msg import RefreshBudget

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, ImageError, InvalidRequestError, VlmReuseError
from vlm_reuse_node.ros.ask_server import AskServer, answered
from vlm_reuse_node.ros.camera_input import RESTARTED_NS, CameraInput
from vlm_reuse_node.ros.diagnostics import (
    RefreshWindow,
    Stage,
    audit_status,
    budget_status,
    camera_status,
    camera_trouble,
    memory_status,
    model_status,
    node_status,
)
from vlm_reuse_node.ros.messages import budget_message, question_of
from vlm_reuse_node.ros.overlay_output import OverlayOutput
from vlm_reuse_node.ros.parameters import (
    check_qos_overrides_are_used,
    declare_parameters,
    making,
    overridable,
    watch_parameters,
)
from vlm_reuse_node.ros.watch_server import WatchServer
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.session.answer import Answer, Status

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

    def __init__(self, name: str = NODE_NAME, *, on_active: Callable[[], None] = lambda: None, **node_arguments):
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
        self._cameras: dict[str, CameraInput] = {}
        self._overlays: dict[str, OverlayOutput] = {}
        self._refreshes = RefreshWindow()
        self._worker: ModelWorker | None = None
        self._asks: AskServer | None = None
        self._watches: WatchServer | None = None
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, '/diagnostics', QoSProfile(depth=10))
        self._diagnosed_s, self._diagnosed = time.monotonic(), {}
        self.create_timer(1.0, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME))
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
            topics = ', '.join(camera.topic for camera in self._cameras.values())
            self.get_logger().info(f'Ready: {self._worker.stats().model} looks at {topics}.')
            self._on_active()
        return done

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take no more pictures and questions; what the model has seen is kept, open questions are answered."""
        return self._transition(self._unsubscribe, Stage.INACTIVE)

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
        self,
        change: Callable[[], None],
        after: Stage,
        during: Stage | None = None,
    ) -> TransitionCallbackReturn:
        """Change the node's state; rclpy alone would drop what is raised without a word."""
        before, self.stage, self._failure = self.stage, during or self.stage, None
        try:
            change()
        except Exception as err:
            self.stage, self._failure = before, err
            is_ours = isinstance(err, VlmReuseError)
            self.get_logger().error(str(err) if is_ours else traceback.format_exc())
            return FAILURE if is_ours else ERROR
        self.stage = after
        return SUCCESS

    def _load(self) -> None:
        self.get_logger().info(f"Loading the model '{self.config.model}'.")
        self._publish_diagnostics()
        # Imports mlx and transformers, seconds that a wrong parameter need not wait for.
        from vlm_reuse_node.serving.worker import ModelWorker

        worker = ModelWorker(self.config, self._on_refresh, self._on_refused, self._on_watch)
        worker.start(self._publish_diagnostics)
        self._worker = worker
        try:
            self._serve()
            for name in self.config.cameras:
                self._add_camera(name)
        except Exception:
            self._unload()
            raise

    def _unload(self) -> None:
        self._keep_cameras(())
        if self._worker:
            self._worker.stop(self._publish_diagnostics)
            self._worker = None

    def _clean_up(self) -> None:
        self._unload()
        if self._watches:
            self._watches.forget()

    def _subscribe(self) -> None:
        try:
            for camera in self._cameras.values():
                camera.subscribe()
            check_qos_overrides_are_used(self)
        except ConfigError:
            self._unsubscribe()
            raise

    def _unsubscribe(self) -> None:
        for camera in self._cameras.values():
            camera.unsubscribe()

    def _serve(self) -> None:
        """Once in the node's life: clients that know a service keep it through cleanup and configure."""
        if self._asks:
            return
        with making('~/refresh_budget'):
            self._budget_publisher = self.create_publisher(
                RefreshBudget, '~/refresh_budget', QoSProfile(depth=10), qos_overriding_options=overridable()
            )
        self._watches = WatchServer(self, self._active_worker)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self._asks = AskServer(self, self._ask, self._with_reason)

    def _keep_cameras(self, names: tuple[str, ...]) -> None:
        """Let all other cameras leave."""
        for name in set(self._cameras) - set(names):
            self._cameras.pop(name).unsubscribe()
            if overlay := self._overlays.pop(name, None):
                overlay.destroy()
            self._diagnosed.pop(name, None)

    def _add_camera(self, name: str) -> None:
        if name not in self._cameras:
            self._cameras[name] = CameraInput(self, name, self.config, self._observe, self._forget)
            self._refreshes.forget(name)
        self._overlays[name] = OverlayOutput(self, name)

    def _reconfigure(self, config: Config) -> None:
        """Take parameters that changed while the node runs."""
        self.config = config
        if self._worker is None:
            return
        self._worker.configure(config)
        self._keep_cameras(config.cameras)
        for name in config.cameras:
            if name not in self._overlays:
                self._or_log(self._add_camera, name)
            self._cameras[name].max_image_pixels = config.max_image_pixels
            if self.stage is Stage.ACTIVE and not self._cameras[name].is_subscribed:
                self._or_log(self._cameras[name].subscribe)

    def _or_log(self, join: Callable, *arguments) -> None:
        """One step of a camera that joins; what is wrong with it is said, and the others go on."""
        try:
            join(*arguments)
        except ConfigError as err:
            self.get_logger().error(str(err))

    def _active_worker(self) -> ModelWorker:
        """The model's thread. Raises InvalidRequestError when the node is not active."""
        if self.stage is not Stage.ACTIVE:
            raise InvalidRequestError(self._inactive())
        return self._worker

    def _inactive(self) -> str:
        if self.stage in (Stage.CONFIGURING, Stage.CLEANING_UP):
            return f'The node is {self.stage}, which takes a while; wait.'
        if self.stage is Stage.FINALIZED:
            return 'The node was shut down for good; start its process again.'
        name = self.get_fully_qualified_name()
        transition = 'activate' if self.stage is Stage.INACTIVE else 'configure'
        return f"The node is {self.stage}: 'ros2 lifecycle set {name} {transition}' is what it waits for."

    def _ask(self, request, cancel, listener):
        """Put a request's question to the model's thread."""
        if self.stage is not Stage.ACTIVE:
            return answered(Answer(Status.INACTIVE, self._inactive(), camera=request.camera))
        ask = self._worker.ask_cold if request.cold else self._worker.ask
        return ask(request.camera, question_of(request), self.get_clock().now().nanoseconds, cancel, listener)

    def _observe(self, frame: Frame) -> bool:
        return self._worker.observe(frame)

    def _forget(self, camera: str = '') -> None:
        if self._worker:
            self._worker.reset(camera)
            self._refreshes.forget(camera)

    def _with_reason(self, answer: Answer) -> Answer:
        """Say why there is no fresh picture, and what to do, where the camera's own counts know it."""
        if answer.status not in (Status.NO_IMAGE, Status.STALE) or answer.camera not in self._cameras:
            return answer
        _, reason = camera_trouble(self._cameras[answer.camera].state(), self.config.max_age_s)
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

    def _on_refresh(self, frame: Frame, refresh: Refresh) -> None:
        """Publish from the model's thread: rclpy publishers may be used from any, and the executor stays free."""
        self._refreshes.add(refresh)
        if camera := self._cameras.get(frame.camera):  # else it has just left
            camera.on_looked_at()
            self._publishing(self._publish_refresh, camera, frame, refresh)

    def _on_refused(self, frame: Frame, error: ImageError) -> None:
        """Count, on the model's thread, what only the model refuses."""
        if camera := self._cameras.get(frame.camera):
            camera.on_refused(error)

    def _on_watch(self, watch, before) -> None:
        self._publishing(self._watches.publish, watch, before)

    def _publishing(self, publish: Callable, *arguments) -> None:
        try:
            publish(*arguments)
        except RuntimeError:
            if self.context.ok():  # else the node was told to stop meanwhile
                raise

    def _publish_refresh(self, camera: CameraInput, frame: Frame, refresh: Refresh) -> None:
        self._budget_publisher.publish(budget_message(refresh, camera.received, camera.dropped, camera.refused_total))
        if self.config.overlay and (overlay := self._overlays.get(frame.camera)):
            overlay.publish(frame, refresh)

    def _publish_diagnostics(self) -> None:
        now_s = time.monotonic()
        seconds, self._diagnosed_s = max(now_s - self._diagnosed_s, 1e-3), now_s
        name = self.get_fully_qualified_name().lstrip('/')
        message = DiagnosticArray(
            status=[
                node_status(name, self.stage, self._inactive(), self._failure),
                *(self._working_statuses(name, seconds) if self._worker else []),
            ]
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._publishing(self._diagnostics_publisher.publish, message)

    def _working_statuses(self, name: str, seconds: float) -> list:
        for camera in self._cameras.values():
            camera.follow_publishers()
        stats = self._worker.stats()
        before, self._diagnosed = self._diagnosed, {camera: entry.state() for camera, entry in self._cameras.items()}
        cameras = self._diagnosed.items() if self.stage is Stage.ACTIVE else ()
        return [
            model_status(name, stats, self.config.queue_size),
            *(
                camera_status(name, state, before.get(camera, state), seconds, self.config.max_age_s)
                for camera, state in cameras
            ),
            budget_status(name, *self._refreshes.take(self._cameras), seconds),
            audit_status(name, stats.audited, self.config.max_drift),
            memory_status(name, stats),
        ]

    def _watch_time(self) -> None:
        """Rebuild every state when (simulated) time jumps back: ages would be wrong, and a bag may be looping."""
        backwards = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-RESTARTED_NS), on_clock_change=True
        )
        self._jumps = self.get_clock().create_jump_callback(backwards, post_callback=self._on_time_jump)

    def _on_time_jump(self, jump) -> None:
        if self._worker is None:
            return
        self.get_logger().info(
            'Time jumped back or changed its source; every camera starts anew.', throttle_duration_sec=5.0
        )
        for camera in self._cameras.values():
            camera.forget_time()
        self._forget()
