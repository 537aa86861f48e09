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

"""A robot for tests: a camera, a planner and an operator in pytest's process, over real DDS on loopback."""

import os
import signal
import subprocess
import threading
from contextlib import contextmanager, nullcontext

import numpy as np
from patience import PATIENCE_S, wait_for

from vlm_reuse_node.demo.dds import claim_domain

os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
_domain, _claim = claim_domain(os.getpid())  # sessions of several people on one machine stay apart
os.environ['ROS_DOMAIN_ID'] = str(_domain)

import rclpy
from ament_index_python.packages import get_package_prefix
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from vlm_reuse_interfaces.msg import RefreshBudget
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.ros.conversion import image_message
from vlm_reuse_node.ros.messages import header_of
from vlm_reuse_node.ros.node import SceneNode

MINUTE = Duration(sec=60)
BUDGET = 'vlm_reuse_node/refresh_budget'
REUSE, FRAME, FULL = RefreshBudget.LEVEL_REUSE, RefreshBudget.LEVEL_FRAME, RefreshBudget.LEVEL_FULL


class Robot:
    """One node of the test's own; everything waits by spinning it until something has happened."""

    def __init__(self, context, namespace: str):
        self.context, self.namespace = context, namespace
        self.node = rclpy.create_node('robot', namespace=namespace, context=context, enable_rosout=False)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self._clients = {}

    def until(self, condition, what='the condition'):
        """Spin until the condition is true and return its value."""
        return wait_for(condition, what, lambda: self.executor.spin_once(timeout_sec=0.1))

    def now_ns(self):
        return self.node.get_clock().now().nanoseconds

    def camera(self, topic='camera/image_raw', kind=Image, qos=qos_profile_sensor_data):
        """A publisher that the scene node listens to."""
        publisher = self.node.create_publisher(kind, topic, qos)
        self.until(publisher.get_subscription_count, f'a subscription of {topic}')
        return publisher

    def listen(self, kind, topic, qos=None):
        """A list that grows with every message; its publisher is known when this returns."""
        messages = []
        subscription = self.node.create_subscription(kind, topic, messages.append, qos or QoSProfile(depth=50))
        self.until(lambda: self.node.count_publishers(subscription.topic_name), f'a publisher of {topic}')
        return messages

    def call(self, kind, name, request):
        """Start a service call; the future is done when the answer is here."""
        if name not in self._clients:  # roomier than ROS's default, which loses answers when more than 10 come at once
            self._clients[name] = self.node.create_client(kind, name, qos_profile=QoSProfile(depth=1000))
        client = self._clients[name]
        self.until(client.service_is_ready, f'the service {name}')
        return client.call_async(request)

    def wait(self, future, what):
        """Spin until it is done and return its result."""
        self.until(future.done, what)
        return future.result()

    def ask(self, question='what is the colour ?', **request):
        """Ask, wait, and return the answer message."""
        return self._answer('ask', AskScene.Request(question=question, **request))

    def ask_cold(self, question='what is the colour ?', **request):
        """Ask for an answer computed from nothing, wait, and return it."""
        return self._answer('ask_cold', AskScene.Request(question=question, **request))

    def reset(self):
        return self.wait(self.call(Trigger, 'vlm_reuse_node/reset', Trigger.Request()), 'the reset')

    def _answer(self, service, request):
        return self.wait(self.call(AskScene, f'vlm_reuse_node/{service}', request), 'the answer').answer

    def diagnostics(self):
        """A function that gives the newest statuses of this robot's scene node by part, {} before the first."""
        messages = self.listen(DiagnosticArray, '/diagnostics')
        prefix = f'{self.namespace}/vlm_reuse_node: '.lstrip('/')

        def newest():
            ours = [
                {
                    status.name.removeprefix(prefix): status
                    for status in message.status
                    if status.name.startswith(prefix)
                }
                for message in messages
            ]
            return next((statuses for statuses in reversed(ours) if statuses), {})

        return newest


def picture_message(seed=0, stamp_ns=1, frame_id='lens', size=(48, 64)):
    """A picture of its own for every seed."""
    rgb = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return image_message(rgb, header_of(stamp_ns, frame_id))


def show(robot, camera, budgets, **picture):
    """Publish a picture of now and wait until the node has looked at it; returns its stamp."""
    seen, message = len(budgets), picture_message(**{'stamp_ns': robot.now_ns()} | picture)
    camera.publish(message)
    robot.until(lambda: REUSE in levels(budgets[seen:]), 'a refresh budget of the look')
    return message.header.stamp


def levels(budgets):
    """The levels of these messages: REUSE of each look, and another one of each refresh."""
    return [budget.level for budget in budgets]


def ask_and_refresh(robot, budgets, **request):
    """Ask a question that has to compute the newest picture; returns the answer and the refresh's message."""
    seen, answer = len(budgets), robot.ask(**request)
    robot.until(lambda: set(levels(budgets[seen:])) - {REUSE}, 'a refresh budget of the refresh')
    return answer, next(budget for budget in budgets[seen:] if budget.level != REUSE)


def transition(robot, number):
    """Ask for one as a lifecycle manager does; the future's result has `success`."""
    request = ChangeState.Request(transition=Transition(id=number))
    return robot.call(ChangeState, 'vlm_reuse_node/change_state', request)


def set_parameter(robot, name, value):
    """Set it as an operator does; returns the result."""
    request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    return robot.wait(robot.call(SetParameters, 'vlm_reuse_node/set_parameters', request), 'the parameter').results[0]


@contextmanager
def graph(own_domain=False):
    """A ROS context of the test's own; in a domain of its own where what a killed node leaves could still be seen."""
    with own_domain_of_processes() if own_domain else nullcontext():
        context = rclpy.Context()
        rclpy.init(context=context)
        try:
            yield context
        finally:
            context.try_shutdown()


@contextmanager
def own_domain_of_processes():
    """Whatever is started meanwhile is in a domain that nobody was in for a while."""
    global _domain
    before = os.environ['ROS_DOMAIN_ID']
    _domain, claim = claim_domain(_domain)  # the one after the last
    os.environ['ROS_DOMAIN_ID'] = str(_domain)
    try:
        yield
    finally:
        os.environ['ROS_DOMAIN_ID'] = before
        claim.close()


@contextmanager
def scene_node(context, namespace, **parameters):
    """The real node with a real model, spinning on a thread of this process."""
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    node = SceneNode(namespace=namespace, context=context, parameter_overrides=overrides)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    try:
        if node.config.autostart:
            node.start()
        thread.start()
        yield node
    finally:
        executor.shutdown()
        if thread.is_alive():
            thread.join(PATIENCE_S)
        node.close()


class NodeProcess:
    """The installed console script as a process of its own; its stderr is read line by line."""

    def __init__(self, *arguments: str):
        script = os.path.join(get_package_prefix('vlm_reuse_node'), 'lib', 'vlm_reuse_node', 'node')
        self.process = subprocess.Popen([script, '--ros-args', *arguments], stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []

    def wait_for_line(self, text):
        """Read stderr up to the line that holds the text."""
        hangs = threading.Timer(PATIENCE_S, self.process.kill)
        hangs.start()
        try:
            for line in self.process.stderr:
                self.lines.append(line)
                if text in line:
                    return line
        finally:
            hangs.cancel()
        raise AssertionError(f'the node ended without saying {text!r}: {"".join(self.lines)}')

    def end(self, with_signal=None):
        """Send a signal if one is given; return the exit code and everything it said on stderr."""
        if with_signal is not None:
            self.process.send_signal(with_signal)
        try:
            rest = self.process.communicate(timeout=PATIENCE_S)[1]
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            raise
        return self.process.returncode, ''.join(self.lines) + rest
