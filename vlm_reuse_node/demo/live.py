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

"""The demo's live part: node, bag player and planner as three processes, started and ended in order."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from vlm_reuse_node.demo.children import Child
from vlm_reuse_node.demo.outputs import VIDEO
from vlm_reuse_node.demo.planner import Planner
from vlm_reuse_node.demo.play import ALL_OUT, PlaybackError, open_bag
from vlm_reuse_node.demo.recorder import Recorder
from vlm_reuse_node.demo.sidecar import Sidecar, read_sidecar
from vlm_reuse_node.demo.summary import Row, Summary
from vlm_reuse_node.demo.table import QuestionTable

LOAD_PATIENCE_S = 300.0
END_PATIENCE_S = 60.0


def record_bag(args: argparse.Namespace, check: Callable[[], None]) -> Sidecar:
    """Write a new bag in place of the last run's, and return its questions. check: may raise meanwhile.

    Raises PlaybackError when there is something else in its place.
    """
    bag = args.out / 'bag'
    remove_own_bag(bag)
    command = _python(
        'vlm_reuse_node.demo.bag',
        bag,
        '--seed',
        args.seed,
        '--seconds',
        args.seconds,
        '--rate',
        args.rate,
        '--transport',
        args.transport,
    )
    with Child('bag writer', command, args.out / 'bag.log') as writer:
        while not writer.has_ended:
            check()
            time.sleep(0.05)
        writer.check()
    return read_sidecar(args.out / 'bag.questions.yaml')


def remove_own_bag(bag: Path) -> None:
    """Remove a bag of an earlier run, if there is one: it has its questions beside it.

    Raises PlaybackError, and removes nothing, when it is anything else.
    """
    if not bag.exists() and not bag.is_symlink():
        return
    is_bag = bag.is_dir() and not bag.is_symlink() and (bag / 'metadata.yaml').exists()
    if not is_bag or not bag.with_name('bag.questions.yaml').exists():
        raise PlaybackError(
            f"'{bag}' was not written by the demo (a bag with bag.questions.yaml beside it); move it, or "
            'name another folder with --out.'
        )
    shutil.rmtree(bag)


def run_live(args: argparse.Namespace, sidecar: Sidecar, check: Callable[[], None]) -> tuple[Summary, Recorder]:
    """Play the bag to the node and ask; when this returns, or raises, only this process is left.

    check: may raise, and is called while anything is waited for. Raises ChildError when the node ends early.
    """
    first_ns, last_ns, sent = _extent(args.out / 'bag')
    with ExitStack() as stack:
        scene_node = stack.enter_context(Child('node', _node_command(args, sidecar), args.out / 'node.log'))
        watched = [check, scene_node.check_running]

        def check_all() -> None:
            for each in watched:
                each()

        ros, executor = stack.enter_context(_ros_node())
        recorder = Recorder(ros, args.out / VIDEO, camera=sidecar.camera, first_ns=first_ns, rate_hz=args.rate)
        stack.callback(recorder.close)
        planner = Planner(ros, executor, recorder, check_all)
        planner.wait_for_node(LOAD_PATIENCE_S)
        player = stack.enter_context(Child('player', _player_command(args), args.out / 'player.log'))
        watched.append(player.check)

        def is_over() -> bool:
            return player.has_said(ALL_OUT) or player.has_ended

        rows = _ask_all(planner, is_over, sidecar, first_ns)
        recorder.keep_diagnostics()
        planner.wait_until(is_over, 'the end of the bag', sidecar.seconds + END_PATIENCE_S)
        planner.see_the_last((last_ns - first_ns) / 1e9, seconds=2.0)
        return Summary(tuple(rows), recorder.looks, recorder.camera(sent), recorder.totals), recorder


def _ask_all(planner: Planner, is_over: Callable[[], bool], sidecar: Sidecar, first_ns: int) -> list[Row]:
    """Ask each question when it is due, and print its line."""
    table = QuestionTable(sidecar.questions)
    patience_s = sidecar.seconds + END_PATIENCE_S
    rows: list[Row] = []
    print(
        f'Playing {sidecar.seconds:g} s of {sidecar.topic}; {len(sidecar.questions)} questions.\n\n{table.header()}',
        flush=True,
    )
    for question in sidecar.questions:
        planner.wait_for_time(first_ns + round(1e9 * question.at_s), is_over, patience_s)
        rows.append(planner.ask_both(question))
        print(table.line(rows[-1]), flush=True)
    return rows


def _extent(path: Path) -> tuple[int, int, int]:
    """A bag's first and last time, nanoseconds, and its number of messages."""
    bag = open_bag(path)
    try:
        return bag.start_time, bag.end_time - 1, bag.message_count  # rosbags counts the end as past the last
    finally:
        bag.close()


def _node_command(args: argparse.Namespace, sidecar: Sidecar) -> list[str]:
    values = {'use_sim_time': True, 'model': args.model, 'cameras': [sidecar.camera], 'image_transport': args.transport}
    parameters = [word for name, value in values.items() for word in ('-p', f'{name}:={json.dumps(value)}')]
    return _python('vlm_reuse_node.ros.process', '--ros-args', *parameters)


def _player_command(args: argparse.Namespace) -> list[str]:
    return _python('vlm_reuse_node.demo.play', args.out / 'bag', '--wait')


def _python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, '-m', module, *map(str, arguments)]


@contextmanager
def _ros_node() -> Iterator[tuple[Node, SingleThreadedExecutor]]:
    """A ROS node of this process, on the robot's simulated clock, and its executor."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node(
            'planner', context=context, enable_rosout=False, parameter_overrides=[Parameter('use_sim_time', value=True)]
        )
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        yield node, executor
    finally:
        context.try_shutdown()
