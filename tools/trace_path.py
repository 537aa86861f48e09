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

"""How far a changed picture and a question travel through this package: files, functions, moves between files.

A move is a call from a function of one file to a function of another one, counted once for every pair of functions.
The real node runs in this process with the embedded model, over DDS on loopback; all its threads are watched.
Prints a table, then one JSON line.
"""

import argparse
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
import rclpy
from builtin_interfaces.msg import Duration
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from vlm_reuse_interfaces.msg import RefreshBudget
from vlm_reuse_interfaces.srv import AskScene

import vlm_reuse_node
from vlm_reuse_node.ros.node import SceneNode

PACKAGE = Path(vlm_reuse_node.__file__).parent
# Runs every second beside everything else, and is no part of a picture's or a question's way.
LEFT_OUT = ('Monitor.publish',)
# What the model's thread does after an answer or a look: how much of it falls into a row would be chance.
AFTERWARDS = ('ModelLoop._work', 'Tally.note_sessions', 'SceneSession.status')


class CallPath:
    """The calls between functions of this package while it records."""

    def __init__(self, afterwards: 'CallPath | None' = None) -> None:
        """Record nothing yet. afterwards: what records the calls of AFTERWARDS; None: this does."""
        self.afterwards = afterwards or self
        self.functions: set[CodeType] = set()
        self.moves: set[tuple[CodeType, CodeType]] = set()
        self._is_on = False

    def __enter__(self) -> 'CallPath':
        self._is_on = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_on = False

    def on_event(self, frame: FrameType, event: str, _: object) -> None:
        """Take one event of `sys.setprofile`."""
        if event != 'call' or not self._is_on or not _is_ours(frame.f_code) or _is_inside(frame, LEFT_OUT):
            return
        (self.afterwards if _is_inside(frame, AFTERWARDS) else self)._add(frame)

    def _add(self, frame: FrameType) -> None:
        self.functions.add(frame.f_code)
        caller = frame.f_back
        while caller is not None and not _is_ours(caller.f_code):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != frame.f_code.co_filename:
            self.moves.add((caller.f_code, frame.f_code))

    def row(self, what: str) -> dict:
        """The counts, with the files."""
        files = sorted({str(Path(code.co_filename).relative_to(PACKAGE)) for code in self.functions})
        moves = sorted(f'{_name(caller)} -> {_name(callee)}' for caller, callee in self.moves)
        return {
            'what': what,
            'files': len(files),
            'functions': len(self.functions),
            'moves': len(moves),
            'names': files,
            'calls': moves,
        }


def _name(code: CodeType) -> str:
    return f'{Path(code.co_filename).relative_to(PACKAGE).with_suffix("")}:{code.co_qualname}'


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(str(PACKAGE)) and not code.co_name.startswith('<')


def _is_inside(frame: FrameType | None, names: tuple[str, ...]) -> bool:
    while frame is not None:
        if frame.f_code.co_qualname in names:
            return True
        frame = frame.f_back
    return False


class Robot:
    """The node, a camera and a planner on one executor."""

    def __init__(self) -> None:
        """Start the node; returns when its model is loaded."""
        rclpy.init()
        self.scene = SceneNode(parameter_overrides=[Parameter('model', value='tabletop')])
        self._node, self._executor = rclpy.create_node('trace_path'), SingleThreadedExecutor()
        self._executor.add_node(self.scene)
        self._executor.add_node(self._node)
        self.scene.start()
        self.budgets: list[RefreshBudget] = []
        self._node.create_subscription(RefreshBudget, 'vlm_reuse_node/refresh_budget', self.budgets.append, 10)
        self._camera = self._node.create_publisher(Image, 'camera/image_raw', 5)
        self._planner: Client = self._node.create_client(AskScene, 'vlm_reuse_node/ask')
        self._until(lambda: self._camera.get_subscription_count() and self._planner.service_is_ready())
        self._until(lambda: self._node.count_publishers('vlm_reuse_node/refresh_budget'))

    def show(self, seed: int) -> None:
        """Publish a picture of coloured blocks; returns when it was looked at."""
        blocks = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        rgb = blocks.repeat(40, axis=0).repeat(40, axis=1)
        message = Image(height=480, width=640, encoding='rgb8', step=1920, data=rgb.tobytes())
        message.header.stamp = self._node.get_clock().now().to_msg()
        count = self._looks()
        while self._looks() == count:
            self._camera.publish(message)
            self._spin(lambda: self._looks() > count, 5.0)

    def ask(self) -> AskScene.Response:
        """Ask one question with choices about the newest picture."""
        future = self._planner.call_async(
            AskScene.Request(question='is there a red square?', choices=['yes', 'no'], max_age=Duration(sec=1000))
        )
        self._until(future.done)
        return future.result()

    def close(self) -> None:
        """End the node."""
        self.scene.close()
        self._node.destroy_node()
        rclpy.shutdown()

    def _looks(self) -> int:
        return sum(budget.level == RefreshBudget.LEVEL_REUSE for budget in self.budgets)

    def _until(self, is_done: Callable[[], object]) -> None:
        while not is_done():
            self._executor.spin_once(timeout_sec=0.05)

    def _spin(self, is_done: Callable[[], object], seconds: float) -> None:
        for _ in range(int(seconds / 0.05)):
            if is_done():
                return
            self._executor.spin_once(timeout_sec=0.05)


def main(argv: list[str] | None = None) -> int:
    """Trace the three ways and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--calls', action='store_true', help='list every move')
    arguments = parser.parse_args(argv)
    afterwards = CallPath()
    paths = {
        'one changed picture': CallPath(afterwards),
        'one question, changed picture': CallPath(afterwards),
        'one question, same picture': CallPath(afterwards),
        'upkeep and status, after all': afterwards,
    }

    def profile(frame: FrameType, event: str, argument: object) -> None:
        for path in paths.values():
            path.on_event(frame, event, argument)

    sys.setprofile(profile)
    threading.setprofile(profile)
    robot = Robot()
    for seed in range(3):
        robot.show(seed)
        robot.ask()
    picture, refreshed, question, _ = paths.values()
    with picture:
        robot.show(3)
    with refreshed:
        robot.ask()
    robot.show(3)
    with question:
        robot.ask()
    sys.setprofile(None)
    threading.setprofile(None)
    robot.close()
    rows = [path.row(name) for name, path in paths.items()]
    print(f'{"":30}{"files":>8}{"functions":>12}{"moves":>8}')
    for row in rows:
        print(f'{row["what"]:30}{row["files"]:>8}{row["functions"]:>12}{row["moves"]:>8}')
        if arguments.calls:
            print('\n'.join(f'    {call}' for call in row['calls']))
    print(json.dumps([{key: row[key] for key in ('what', 'files', 'functions', 'moves', 'names')} for row in rows]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
