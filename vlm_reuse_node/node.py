"""The ROS 2 node: pictures and questions in, answers, refresh budget, overlay and diagnostics out.

The executor's thread only converts, hands over and publishes; the model has a thread of its own (`worker.py`).
"""

from __future__ import annotations

from concurrent.futures import Future as WorkerFuture
from dataclasses import replace
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

import cv2
from diagnostic_msgs.msg import DiagnosticArray
import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.task import Future
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from vlm_reuse_interfaces.msg import RefreshBudget
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.budget import Answer, Refresh, Status
from vlm_reuse_node.camera_input import CameraInput
from vlm_reuse_node.config import Config
from vlm_reuse_node.diagnostics import (
    audit_status, budget_status, camera_status, camera_trouble, model_status, RefreshWindow)
from vlm_reuse_node.errors import ConfigError, ImageError, InvalidRequestError, ModelError
from vlm_reuse_node.frame import Frame
from vlm_reuse_node.overlay import draw_overlay
from vlm_reuse_node.process import Interrupts, RosLog, say_ready
from vlm_reuse_node.ros_convert import image_message
from vlm_reuse_node.ros_messages import answer_message, budget_message, header_of, question_of
from vlm_reuse_node.ros_parameters import check_qos_overrides_are_used, declare_parameters, watch_parameters

if TYPE_CHECKING:
    from vlm_reuse_node.worker import ModelWorker

NODE_NAME = 'vlm_reuse_node'
EXIT_MODEL, EXIT_CONFIG = 1, 2
# The middleware drops requests beyond this depth without a word (ROS's default is 10); BUSY is for the node to say.
QUESTIONS_AT_ONCE = 1000


class SceneNode(Node):
    """Answers planners about live cameras.

    Construction checks the parameters and `start` loads the model, so that a service that exists also answers.
    """

    def __init__(self, name: str = NODE_NAME, **node_arguments):
        """Declare the parameters; nothing is loaded and nothing is subscribed yet.

        Raises ConfigError for a parameter that is unknown or wrong.
        """
        super().__init__(name, **node_arguments)
        self.config = declare_parameters(self)
        self._cameras: dict[str, CameraInput] = {}
        self._overlays: dict[str, object] = {}
        self._refreshes = RefreshWindow()
        self._worker: ModelWorker | None = None

    def start(self) -> None:
        """Load the model, then publish, serve and subscribe.

        Raises ModelError when the model cannot be loaded, ConfigError for a QoS override that is wrong.
        """
        self.get_logger().info(f"Loading the model '{self.config.model}'.")
        # Imports mlx and transformers, seconds that a wrong parameter need not wait for.
        from vlm_reuse_node.worker import ModelWorker
        self._worker = ModelWorker(self.config, self._on_refresh, self._on_refused)
        self._worker.start()
        self._publish_and_serve()
        self._cameras = {name: self._camera(name) for name in self.config.cameras}
        check_qos_overrides_are_used(self)
        watch_parameters(self, lambda: self.config, self._configure)
        self._watch_time()
        self.get_logger().info(f'Ready: {self._worker.stats().model} looks at '
                               f'{", ".join(camera.topic for camera in self._cameras.values())}.')

    def close(self) -> None:
        """End the model's thread and destroy the node; open questions are dropped."""
        if self._worker:
            self._worker.stop()
        self.destroy_node()

    def _publish_and_serve(self) -> None:
        overridable = QoSOverridingOptions.with_default_policies()
        self._budget_publisher = self.create_publisher(
            RefreshBudget, '~/refresh_budget', QoSProfile(depth=10), qos_overriding_options=overridable)
        for index, name in enumerate(self.config.cameras):
            topic = f'~/overlay/{name}' if index else '~/overlay'
            self._overlays[name] = self.create_publisher(
                Image, topic, QoSProfile(depth=5), qos_overriding_options=overridable)
        # Questions wait for the model without holding up each other or anything else.
        self.create_service(AskScene, '~/ask', self._on_ask, qos_profile=QoSProfile(depth=QUESTIONS_AT_ONCE),
                            callback_group=ReentrantCallbackGroup())
        self.create_service(Trigger, '~/reset', self._on_reset)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, '/diagnostics', QoSProfile(depth=10))
        self._diagnosed_s, self._diagnosed = time.monotonic(), {}
        self.create_timer(1.0, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _camera(self, name: str) -> CameraInput:
        return CameraInput(self, name, self.config, self._worker.observe, self._worker.reset)

    def _configure(self, config: Config) -> None:
        """Take parameters that changed while the node runs."""
        self.config = config
        self._worker.configure(config)
        for camera in self._cameras.values():
            camera.max_image_pixels = config.max_image_pixels

    async def _on_ask(self, request: AskScene.Request, response: AskScene.Response) -> AskScene.Response:
        response.answer = answer_message(await self._answer(request))
        return response

    async def _answer(self, request) -> Answer:
        """Ask the model's thread and wait for it in the executor, which goes on with everything else."""
        try:
            question = question_of(request)
        except InvalidRequestError as err:
            return Answer(Status.INVALID_REQUEST, str(err), camera=request.camera)
        ask = self._worker.ask_cold if request.cold else self._worker.ask
        asked = ask(request.camera, question, self.get_clock().now().nanoseconds)
        return self._with_reason(await in_executor(self.executor, asked))

    def _with_reason(self, answer: Answer) -> Answer:
        """Say why there is no fresh picture, and what to do, where the camera's own counts know it."""
        if answer.status not in (Status.NO_IMAGE, Status.STALE) or answer.camera not in self._cameras:
            return answer
        _, reason = camera_trouble(self._cameras[answer.camera].state(), self.config.max_age_s)
        return replace(answer, message=f'{answer.message} {reason}'.strip())

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._worker.reset()
        response.success = True
        response.message = f'The next picture of {", ".join(self.config.cameras)} is read anew.'
        return response

    def _on_refresh(self, frame: Frame, refresh: Refresh) -> None:
        """Publish from the model's thread: rclpy publishers may be used from any, and the executor stays free."""
        self._refreshes.add(refresh)
        self._cameras[frame.camera].on_looked_at()
        try:
            self._publish_refresh(frame, refresh)
        except RuntimeError:
            if self.context.ok():  # else the node was told to stop meanwhile
                raise

    def _on_refused(self, frame: Frame, error: ImageError) -> None:
        """Count, on the model's thread, what only the model refuses."""
        self._cameras[frame.camera].on_refused(error)

    def _publish_refresh(self, frame: Frame, refresh: Refresh) -> None:
        camera = self._cameras[frame.camera]
        self._budget_publisher.publish(
            budget_message(refresh, camera.received, camera.dropped, camera.refused_total))
        overlay = self._overlays[frame.camera]
        if self.config.overlay and overlay.get_subscription_count():
            overlay.publish(image_message(draw_overlay(frame, refresh), header_of(frame.stamp_ns, frame.frame_id)))

    def _publish_diagnostics(self) -> None:
        now_s = time.monotonic()
        seconds, self._diagnosed_s = max(now_s - self._diagnosed_s, 1e-3), now_s
        name = self.get_fully_qualified_name().lstrip('/')
        for camera in self._cameras.values():
            camera.follow_publishers()
        stats = self._worker.stats()
        states = {camera: entry.state() for camera, entry in self._cameras.items()}
        message = DiagnosticArray(status=[
            model_status(name, stats, self.config.queue_size),
            *(camera_status(name, state, self._diagnosed.get(camera, state), seconds, self.config.max_age_s)
              for camera, state in states.items()),
            budget_status(name, self._refreshes.take(), seconds),
            audit_status(name, stats.audited, self.config.max_drift)])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnosed = states
        self._diagnostics_publisher.publish(message)

    def _watch_time(self) -> None:
        """Rebuild every state when (simulated) time jumps back: ages would be wrong, and a bag may be looping."""
        backwards = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jumps = self.get_clock().create_jump_callback(backwards, post_callback=self._on_time_jump)

    def _on_time_jump(self, jump) -> None:
        self.get_logger().info('Time jumped back or changed its source; every camera starts anew.')
        for camera in self._cameras.values():
            camera.forget_time()
        self._worker.reset()


def in_executor(executor, asked: WorkerFuture) -> Future:
    """Make an answer of the model's thread awaitable in an rclpy coroutine."""
    answer = Future(executor=executor)

    def finish(done: WorkerFuture) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error:
            answer.set_result(Answer(Status.MODEL_ERROR, f'The question was dropped: {error or "cancelled"}.'))
        else:
            answer.set_result(done.result())
        # The executor sleeps until something is ready, and a future's result alone does not count as that.
        executor.wake()

    asked.add_done_callback(finish)
    return answer


def main(argv: list[str] | None = None) -> int:
    """Run the node until it is told to stop.

    Returns 0, EXIT_MODEL for a model that cannot be loaded, EXIT_CONFIG for parameters or arguments that are wrong.
    """
    interrupts = Interrupts()
    if hasattr(cv2, 'setLogLevel'):
        cv2.setLogLevel(0)  # damaged pictures are counted and named by the node
    try:
        exit_code = _init_and_run(argv, interrupts)
    except Exception:
        if not interrupts.came:
            raise
        exit_code = 0
    finally:
        rclpy.try_shutdown()
    if interrupts.came:
        # The model may be loading still: its thread cannot be stopped, and Python aborts when it ends under it.
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code


def _init_and_run(argv, interrupts: Interrupts) -> int:
    try:
        _init(argv)
        return _run(interrupts)
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    except ConfigError as err:
        return _say(err, EXIT_CONFIG)
    except ModelError as err:
        return _say(err, EXIT_MODEL)


def _init(argv: list[str] | None) -> None:
    """Raises ConfigError for ROS arguments that are wrong, such as a parameter file that is not there."""
    try:
        rclpy.init(args=argv)
    except RuntimeError as err:
        reason = str(err).splitlines()[0].partition(', at ')[0]
        raise ConfigError(f'The ROS arguments are wrong: {reason}.') from err


def _run(interrupts: Interrupts) -> int:
    node = SceneNode()
    logging.getLogger('vlm_reuse_node').addHandler(RosLog(node.get_logger()))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    node.start()
    interrupts.welcome = False
    try:
        say_ready()  # from here on, signals end it in order
        executor.spin()
    except RuntimeError:
        if rclpy.ok():  # else a signal shut ROS down between two steps of the executor
            raise
    finally:
        interrupts.welcome = True
        node.close()
    return 0


def _say(err: Exception, exit_code: int) -> int:
    print(f'{NODE_NAME}: {err}', file=sys.stderr)
    return exit_code


if __name__ == '__main__':
    sys.exit(main())
