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

"""Whether the node can run for hours: two cameras at 30 Hz, two questions a second, all over DDS.

The node is the installed program in a process of its own; cameras and planner are this one. Fails when a question gets
neither an answer nor a status, when questions pile up, and when the node's memory surely grows faster than --max-slope
after the warm-up: when the whole 95 % interval of its growth lies above that. Where the interval holds --max-slope the
soak was not long enough to tell, says so, and does not fail.

Memory is resident memory without shared pages: the node reads pictures in place, in DDS segments of the camera's
process, whose pages count as resident in both from the first time they are used.

Prints a line now and then, a table, and one JSON line; the same JSON goes to out/soak.json, and beside it soak_node.log
and soak_samples.csv, one line a second.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import rclpy
from ament_index_python.packages import get_package_prefix
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from results import publish
from soak_figures import Sample, Soak, as_json
from soak_robot import NODE, NodeMonitor, SoakCameras, SoakPlanner

from vlm_reuse_node.demo.children import Child, ChildError
from vlm_reuse_node.demo.dds import use_own_domain
from vlm_reuse_node.demo.interruption import Interruption, InterruptionError
from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.ros.process import READY

OUTPUT = Path(__file__).parents[1] / 'out' / 'soak.json'
CAMERAS = ['front', 'side']
EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
LOAD_PATIENCE_S = 300.0
ANSWER_PATIENCE_S = 60.0  # for the last answers
HURRY_S = 5.0  # likewise, after an interruption
DIAGNOSTICS_S = 3.0
NEWS_S = 30.0  # between two printed lines
LAST_DOMAIN = 232


class SoakError(VlmReuseError):
    """The soak could not begin."""


class SoakRun:
    """One soak, from the first picture to the end of the node."""

    def __init__(
        self,
        args: argparse.Namespace,
        node: Child,
        ros: Node,
        executor: SingleThreadedExecutor,
        check: Callable[[], None],
    ) -> None:
        """Prepare. check: may raise InterruptionError whenever something is waited for."""
        self._args = args
        self._node = node
        self._executor = executor
        self._check = check
        self._watched = [check, node.check_running]
        self._cameras = SoakCameras(ros, CAMERAS, args.rate)
        self._planner = SoakPlanner(ros, CAMERAS, args.questions)
        self._monitor = NodeMonitor(ros, node.pid, self._on_sample)
        self._told_s = -NEWS_S

    def connect(self) -> None:
        """Wait until the node has loaded its model and everybody has found everybody.

        Raises SoakError when that takes too long, and whatever ends the node or this program.
        """

        def is_connected() -> bool:
            return self._node.has_said(READY) and self._cameras.are_connected and self._planner.is_connected

        self._spin(LOAD_PATIENCE_S, is_connected)
        if not is_connected():
            raise SoakError(f"The node did not serve within {LOAD_PATIENCE_S:g} s; see '{self._node.log}'.")

    def soak(self) -> Soak:
        """Send and ask until the time is over, or something ends it early."""
        start_s = time.monotonic()
        stopped = ''
        self._monitor.begin()
        try:
            with self._cameras:
                stopped = self._ask()
                seconds = time.monotonic() - start_s
                self._spin(HURRY_S if stopped else ANSWER_PATIENCE_S, lambda: not self._planner.open)
            self._see_the_last()
            self._node.end()
            self._node.check()
        except (InterruptionError, ChildError) as error:
            stopped = str(error)
            seconds = time.monotonic() - start_s
        return Soak(
            seconds,
            60 * self._args.warmup,
            self._monitor.samples,
            self._cameras.sent.total(),
            self._monitor.counts,
            self._monitor.levels,
            self._planner.asked,
            self._planner.statuses,
            self._planner.answer_ms,
            stopped,
        )

    def _ask(self) -> str:
        """Ask until the time is over; return why it was over early, or ''."""
        try:
            self._spin(60 * self._args.minutes, each=self._planner.ask_when_due)
        except InterruptionError as error:
            self._watched.remove(self._check)  # there is time for the answers that are due
            return str(error)
        return ''

    def _see_the_last(self) -> None:
        """Wait for counts that have every picture in them."""
        seen = len(self._monitor.samples)
        self._spin(DIAGNOSTICS_S, lambda: len(self._monitor.samples) > seen)

    def _spin(
        self, seconds: float, until: Callable[[], bool] = lambda: False, each: Callable[[], None] = lambda: None
    ) -> None:
        """Let ROS work until a condition holds, at most so long. What is watched may raise.

        each: called now and then.
        """
        end_s = time.monotonic() + seconds
        while not until() and (left_s := end_s - time.monotonic()) > 0:
            for check in self._watched:
                check()
            each()
            self._executor.spin_once(timeout_sec=min(0.05, left_s))

    def _on_sample(self, sample: Sample) -> None:
        """Print how it goes, now and then."""
        if sample.seconds - self._told_s < NEWS_S:
            return
        self._told_s = sample.seconds
        print(
            f'{sample.seconds / 60:6.1f} min  {sample.frames:8d} pictures  {sample.rss_mb:7.1f} MB  {sample.waiting} '
            f'waiting  {self._planner.asked} asked, {self._planner.open} open',
            flush=True,
        )


def soak(args: argparse.Namespace, check: Callable[[], None]) -> Soak:
    """Start the node, soak it and end it. check: may raise InterruptionError.

    Raises SoakError or ChildError when the node does not come up.
    """
    with ExitStack() as stack:
        node = stack.enter_context(Child('node', _node_command(args.model), args.output.with_name('soak_node.log')))
        run = SoakRun(args, node, *stack.enter_context(_ros_node()), check)
        run.connect()
        return run.soak()


def _node_command(model: str) -> list[str]:
    values = {'model': model, 'cameras': CAMERAS}
    parameters = [word for name, value in values.items() for word in ('-p', f'{name}:={json.dumps(value)}')]
    return [os.path.join(get_package_prefix(NODE), 'lib', NODE, 'node'), '--ros-args', *parameters]


@contextmanager
def _ros_node() -> Iterator[tuple[Node, SingleThreadedExecutor]]:
    """A ROS node of this process and its executor."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node('soak', context=context, enable_rosout=False)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        yield node, executor
    finally:
        context.try_shutdown()


def report(result: dict, samples: Sequence[Sample], output: Path) -> None:
    """Print the table and the JSON line, and write the files."""
    with output.with_name('soak_samples.csv').open('w', newline='') as file:
        table = csv.DictWriter(file, [field.name for field in fields(Sample)])
        table.writeheader()
        table.writerows(map(asdict, samples))
    for name, value in result.items():
        print(f'{name.replace("_", " "):32s} {value}')
    print('\n'.join(result['faults']) or f'Nothing is wrong. {result["memory"]}')
    publish(result, output)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=8.0, help='how long to ask; default: %(default)g')
    parser.add_argument(
        '--warmup',
        type=float,
        metavar='MINUTES',
        help='memory may grow for so long at first; default: two fifths of the time, at most 5',
    )
    parser.add_argument(
        '--max-slope',
        type=float,
        default=1.0,
        metavar='MB',
        help='most that memory may grow in 10,000 pictures; default: %(default)g',
    )
    parser.add_argument('--rate', type=float, default=30.0, help='pictures a second, of each; default: %(default)g')
    parser.add_argument('--questions', type=float, default=2.0, help='a second, together; default: %(default)g')
    parser.add_argument('--model', default='tabletop', help="the node's model; default: the embedded one")
    parser.add_argument('--domain', type=int, help='ROS_DOMAIN_ID, to look in from beside; default: one of its own')
    parser.add_argument('--output', type=Path, default=OUTPUT, help='where the JSON goes; default: out/soak.json')
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments, or end the program when they make no sense."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.warmup is None:
        args.warmup = min(0.4 * args.minutes, 5.0)
    if not 0 <= args.warmup < args.minutes or min(args.rate, args.questions) <= 0:
        parser.error(
            f'--minutes is {args.minutes:g}, --warmup {args.warmup:g}, --rate {args.rate:g} and --questions '
            f'{args.questions:g}; expected more minutes than those of the warm-up, and rates above 0.'
        )
    if args.domain is not None and not 0 <= args.domain <= LAST_DOMAIN:
        parser.error(f'--domain is {args.domain}; expected 0 to {LAST_DOMAIN}.')
    return args


def main(argv: list[str] | None = None) -> int:
    """Soak, and report. Returns 0 only when nothing was found wrong."""
    args = parse_arguments(argv)
    use_own_domain()
    if args.domain is not None:
        os.environ['ROS_DOMAIN_ID'] = str(args.domain)
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with Interruption() as interruption:
            done = soak(args, interruption.check)
            result = as_json(done, args.max_slope)
            report(result, done.samples, args.output)
            interruption.check()
    except (VlmReuseError, OSError) as error:
        print(f'soak: {error}', file=sys.stderr)
        return EXIT_INTERRUPTED if isinstance(error, InterruptionError) else EXIT_FAILED
    return EXIT_FAILED if result['faults'] else 0


if __name__ == '__main__':
    sys.exit(main())
