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

"""Asks a running node by its action. The only file of the program that needs ROS."""

from typing import Any, TextIO

import rclpy
from rclpy.action import ActionClient
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future
from vlm_reuse_interfaces.action import AskScene

from vlm_reuse_node.ask.follow import Follower
from vlm_reuse_node.errors import ConfigError, VlmReuseError
from vlm_reuse_node.ros.messages import answer_of, duration_of
from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.question import Question

ACTION = 'ask_scene'
FOUND_WITHIN_S = 5.0


class NodeError(VlmReuseError):
    """The node does not answer."""


def ask(name: str, camera: str, question: Question, follow: TextIO | None) -> Answer:
    """Ask a running node. Ctrl-C cancels the question.

    name: of the node. camera: '' takes its first one. follow: where to show a text while it grows.
    Raises NodeError when there is no such node, and ConfigError for an invalid name.
    """
    context, follower = Context(), Follower(follow)
    rclpy.init(args=[], context=context)
    executor = SingleThreadedExecutor(context=context)
    node = rclpy.create_node('vlm_reuse_ask', context=context, start_parameter_services=False)
    try:
        executor.add_node(node)
        return _ask(node, executor, name.rstrip('/'), _goal(camera, question), follower)
    finally:
        follower.end()
        node.destroy_node()
        executor.shutdown()
        context.try_shutdown()


def _ask(node: Node, executor: SingleThreadedExecutor, name: str, goal: AskScene.Goal, follower: Follower) -> Answer:
    try:
        client: Any = ActionClient(node, AskScene, f'{name}/{ACTION}')
    except Exception as error:  # rclpy raises several kinds
        raise ConfigError(f"'{name}' is no name of a node; expected one such as /vlm_reuse_node.") from error
    _spin(executor, lambda: client.server_is_ready(), FOUND_WITHIN_S)
    if not client.server_is_ready():
        raise NodeError(
            f"There is no node '{name}' that answers; nobody serves {name}/{ACTION}. Start it "
            '(ros2 launch vlm_reuse_node vlm_reuse.launch.py), compare ROS_DOMAIN_ID, or give --node.'
        )
    sent = client.send_goal_async(goal, feedback_callback=lambda message: follower.show(message.feedback.text))
    handle = _result(executor, sent)
    if not handle.accepted:
        raise NodeError(f"The node '{name}' does not take questions now; is it active? ros2 lifecycle get {name}")
    result = handle.get_result_async()
    try:
        return answer_of(_result(executor, result).result.answer)
    except KeyboardInterrupt:
        handle.cancel_goal_async()
        _spin(executor, result.done, 1.0)
        raise


def _goal(camera: str, question: Question) -> AskScene.Goal:
    return AskScene.Goal(
        camera=camera,
        question=question.text,
        choices=list(question.choices),
        json_schema=question.json_schema,
        max_age=duration_of(question.max_age_s),
        max_lag=duration_of(question.max_lag_s),
        timeout=duration_of(question.timeout_s),
        max_tokens=question.max_tokens,
    )


def _result(executor: SingleThreadedExecutor, future: Future) -> Any:
    """Spin until it is done. Python sees Ctrl-C between two short spins only."""
    while not future.done():
        executor.spin_once(timeout_sec=0.1)
    return future.result()


def _spin(executor: SingleThreadedExecutor, condition: Any, seconds: float) -> None:
    """Spin until a condition holds, or for so many seconds."""
    for _ in range(round(seconds / 0.05)):
        if condition():
            return
        executor.spin_once(timeout_sec=0.05)
