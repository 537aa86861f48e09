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

"""A planner that asks with the service: is there an answer, which choice is it, and how sure."""

import sys

import rclpy
from builtin_interfaces.msg import Duration
from rclpy.client import Client
from vlm_reuse_interfaces.msg import Answer
from vlm_reuse_interfaces.srv import AskScene


def main() -> None:
    rclpy.init()
    node = rclpy.create_node('planner')
    client: Client = node.create_client(AskScene, 'vlm_reuse_node/ask')
    if not client.wait_for_service(timeout_sec=30.0):  # it takes as long as loading the model
        sys.exit('There is no vlm_reuse_node; start it, or compare ROS_DOMAIN_ID.')
    request = AskScene.Request(question='is there a red square ?', choices=['yes', 'no'], timeout=Duration(sec=10))
    future = client.call_async(request)
    rclpy.spin_until_future_complete(node, future, timeout_sec=20.0)  # a node that dies never answers
    if not future.done():
        sys.exit('The node did not answer in time.')
    answer = future.result().answer
    if answer.status != Answer.OK:  # text is empty then, and message says what to do
        sys.exit(f'No answer (status {answer.status}): {answer.message}')
    print(f'{answer.text}, {answer.confidence:.2f} sure, about camera {answer.camera}')
    rclpy.shutdown()


if __name__ == '__main__':
    main()
