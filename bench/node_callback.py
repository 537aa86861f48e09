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

"""How long the node's image callback takes while a camera sends 640 x 480 at 30 Hz and a planner asks.

Camera and planner are this process, the node is another, and everything goes over DDS. Prints a table, then one JSON
line; the same JSON goes to out/bench/node_callback.json.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)

import numpy as np  # noqa: E402
import rclpy  # noqa: E402
from ament_index_python.packages import get_package_prefix  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.client import Client  # noqa: E402
from rclpy.executors import ExternalShutdownException  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import QoSProfile, qos_profile_sensor_data  # noqa: E402
from results import publish  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from vlm_reuse_interfaces.msg import Answer, RefreshBudget  # noqa: E402
from vlm_reuse_interfaces.srv import AskScene  # noqa: E402

from vlm_reuse_node.ros.conversion import image_message
from vlm_reuse_node.ros.messages import duration_of, header_of

NODE = 'vlm_reuse_node'
OUTPUT = Path(__file__).parents[1] / 'out' / 'bench' / 'node_callback.json'


class BenchRobot:
    """A camera and a planner that record the node's answers, budgets and diagnostics."""

    def __init__(self, camera_qos: QoSProfile) -> None:
        """Create the ROS node, its publisher and its subscriptions."""
        self.node = rclpy.create_node('bench')
        self.camera = self.node.create_publisher(Image, 'camera/image_raw', camera_qos)
        self.client: Client = self.node.create_client(AskScene, f'{NODE}/ask', qos_profile=QoSProfile(depth=1000))
        self.budgets: list[RefreshBudget] = []
        self.diagnostics: dict[str, str] = {}
        self.answers: list[tuple[float, float, int]] = []  # milliseconds outside and inside the node, and status
        self.node.create_subscription(RefreshBudget, f'{NODE}/refresh_budget', self.budgets.append, 50)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

    def ask(self, question: str) -> None:
        """Ask; when the answer comes, record how long it took."""
        start = time.perf_counter()

        def note(done: Any) -> None:
            answer = done.result().answer
            self.answers.append((1000 * (time.perf_counter() - start), answer.total_ms, answer.status))

        future = self.client.call_async(AskScene.Request(question=question, max_age=duration_of(10.0)))
        future.add_done_callback(note)

    def send(self, messages: list[Image], count: int, rate_hz: float) -> None:
        """Publish at a steady rate, stamped as taken now."""
        start = time.perf_counter()
        for index in range(count):
            time.sleep(max(0.0, start + index / rate_hz - time.perf_counter()))
            message = messages[index % len(messages)]
            message.header = header_of(self.node.get_clock().now().nanoseconds, 'lens')
            self.camera.publish(message)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f'{NODE}: camera camera':
                self.diagnostics = {pair.key: pair.value for pair in status.values}


def moving_scene(count: int = 30) -> list[Image]:
    """Return textured pictures in which one square moves, so that some cells change in every picture."""
    rng = np.random.default_rng(0)
    texture = rng.integers(60, 120, (480, 640, 3), np.uint8)
    messages = []
    for index in range(count):
        rgb = texture.copy()
        rgb[200:260, 15 * index : 15 * index + 60] = (220, 40, 40)
        messages.append(image_message(rgb, header_of(0, 'lens')))
    return messages


def start_node(model: str) -> subprocess.Popen:
    """Start the installed program and wait until it serves."""
    script = os.path.join(get_package_prefix(NODE), 'lib', NODE, 'node')
    node = subprocess.Popen([script, '--ros-args', '-p', f'model:={model}'], stderr=subprocess.PIPE, text=True)
    log = node.stderr
    if log is None:
        raise RuntimeError('The node has no stderr.')
    for line in log:
        if 'Ready' in line:
            threading.Thread(target=log.read, daemon=True).start()
            return node
        print(line, end='', file=sys.stderr)
    raise SystemExit('The node did not start.')


def measure(robot: BenchRobot, seconds: float, rate_hz: float, questions_hz: float) -> dict:
    """Send and ask for a while; return the record that is printed."""
    while not (robot.client.service_is_ready() and robot.camera.get_subscription_count()):
        time.sleep(0.05)
    robot.send(moving_scene(), int(rate_hz), rate_hz)  # one second to settle
    received_before = robot.budgets[-1].frames_received if robot.budgets else 0
    ended = threading.Event()

    def ask_steadily() -> None:
        while not ended.wait(1 / questions_hz):
            robot.ask('what is the colour of the square ?')

    planner = threading.Thread(target=ask_steadily)
    planner.start()
    frames = int(seconds * rate_hz)
    robot.send(moving_scene(), frames, rate_hz)
    ended.set()
    planner.join()
    time.sleep(2.5)  # the last answers, and one more diagnostics
    return record(robot, frames + int(rate_hz), received_before)


def record(robot: BenchRobot, sent: int, received_before: int) -> dict:
    """Return what was measured, units in the names."""
    statuses = [status for _, _, status in robot.answers]
    looks = [budget for budget in robot.budgets if budget.level == RefreshBudget.LEVEL_REUSE]
    looked_at = sum(look.frames_received > received_before for look in looks)
    counts = {name: int(robot.diagnostics[f'pictures {name}']) for name in ('received', 'lost', 'dropped', 'refused')}
    return {
        'callback_ms_median': float(robot.diagnostics['callback median'].split()[0]),
        'callback_ms_p95': float(robot.diagnostics['callback p95'].split()[0]),
        'frames_sent': sent,
        **{f'frames_{name}': count for name, count in counts.items()},
        'frames_looked_at': looked_at,
        'questions': len(statuses),
        'answers_ok': statuses.count(Answer.OK),
        'answer_ms_median': round(median(total for total, _, _ in robot.answers), 2),
        'answer_outside_model_thread_ms_median': round(median(total - inside for total, inside, _ in robot.answers), 2),
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='tabletop', help='model directory; default: the embedded one')
    parser.add_argument('--seconds', type=float, default=10.0, help='how long to measure; default: %(default)s')
    parser.add_argument('--rate', type=float, default=30.0, help='pictures per second; default: %(default)s')
    parser.add_argument('--questions', type=float, default=4.0, help='questions per second; default: %(default)s')
    parser.add_argument('--best-effort', action='store_true', help='the camera publishes best effort, not reliable')
    return parser


def main() -> int:
    """Measure, print the table and the JSON line, and write the file."""
    arguments = build_parser().parse_args()
    node = start_node(arguments.model)
    rclpy.init()
    robot = BenchRobot(qos_profile_sensor_data if arguments.best_effort else QoSProfile(depth=1))
    spinning = threading.Thread(target=spin, args=(robot.node,), daemon=True)
    spinning.start()
    try:
        result = measure(robot, arguments.seconds, arguments.rate, arguments.questions)
    finally:
        node.send_signal(signal.SIGINT)
        node.wait()
        rclpy.shutdown()
        spinning.join()
    for name, value in result.items():
        print(f'{name.replace("_", " "):40s} {value}')
    publish(result, OUTPUT)
    return 0


def spin(node: Node) -> None:
    """Let ROS work until it is shut down."""
    try:
        rclpy.spin(node)
    except ExternalShutdownException:
        pass


if __name__ == '__main__':
    sys.exit(main())
