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

"""A planner that asks with the action: it follows the text as it grows, cancels at Ctrl-C, and sets a time limit.

Parameters: question, and timeout in seconds.
"""

import sys
from typing import Any

import rclpy
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from vlm_reuse_interfaces.action import AskScene


def main() -> None:
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # at Ctrl-C ROS must live on, to cancel the goal
    node = Node('planner')
    question: str = node.declare_parameter('question', 'what objects are there ?').value
    timeout = Duration(seconds=node.declare_parameter('timeout', 10.0).value)
    client: Any = ActionClient(node, AskScene, 'vlm_reuse_node/ask_scene')
    if not client.wait_for_server(timeout_sec=30.0):
        sys.exit('There is no vlm_reuse_node; start it, or compare ROS_DOMAIN_ID.')

    # 1. Ask. The node keeps the time limit; it counts from the question to the answer, with the time in the queue.
    goal = AskScene.Goal(question=question, timeout=timeout.to_msg())
    handle = wait(node, client.send_goal_async(goal, feedback_callback=show))
    if not handle.accepted:
        sys.exit('The node is not active: ros2 lifecycle get /vlm_reuse_node')

    # 2. Wait for the result, which comes in any case: after a cancel, too, within one step of the model.
    result = handle.get_result_async()
    try:
        print('Asked; Ctrl-C cancels.', flush=True)
        wait(node, result)
    except KeyboardInterrupt:
        wait(node, handle.cancel_goal_async())
        print('Cancelling.', flush=True)
        wait(node, result)

    # 3. Only a goal that succeeded has an answer; else message says why, and what to do.
    answer = result.result().result.answer
    if result.result().status != GoalStatus.STATUS_SUCCEEDED:
        sys.exit(f'No answer (status {answer.status}): {answer.message}')
    print(f'{answer.text} (least likely token {answer.confidence:.2f}, {answer.total_ms:.0f} ms)')
    rclpy.shutdown()


def show(message: Any) -> None:
    """Print what the node is doing, and the text so far."""
    print(message.feedback.stage, message.feedback.text, flush=True)


def wait(node: Node, future: Any) -> Any:
    """Spin until it is done, and return its result. Python sees Ctrl-C between two short spins only."""
    while not future.done():
        rclpy.spin_once(node, timeout_sec=0.1)
    return future.result()


if __name__ == '__main__':
    main()
