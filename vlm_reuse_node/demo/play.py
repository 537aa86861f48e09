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

"""Plays a ROS 2 bag (mcap or sqlite3) over DDS in real time, as `ros2 bag play --clock` does where that is installed.

Messages go out as they were recorded, header stamps included, on the recorded topics, with sensor-data QoS. `/clock`
follows the times at which they were recorded.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import rclpy
from builtin_interfaces.msg import Time
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from rosbags.rosbag2 import Reader, ReaderError
from rosgraph_msgs.msg import Clock

from vlm_reuse_node.demo.interruption import Interruption, InterruptionError
from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.plain_text import print_error

HOLD_S = 0.3
ALL_OUT = 'all messages are out'


class PlaybackError(VlmReuseError):
    """A bag that cannot be played."""


@dataclass(frozen=True)
class PlaybackResult:
    """messages: published. latest_ms: how late the latest of them was, against the bag's own times."""

    messages: int = 0
    latest_ms: float = 0.0


class BagPlayer:
    """Publishes every topic of an open bag, and `/clock`."""

    def __init__(
        self,
        node: Node,
        bag: Reader,
        *,
        rate: float = 1.0,
        clock_hz: float = 40.0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the publishers.

        rate: bag seconds in a second. clock_hz: `/clock` messages in a second, besides one before each message.
        check: called with every `/clock` message; what it raises ends the playing.
        Raises PlaybackError for a message type that is not installed.
        """
        self.result = PlaybackResult()
        self._bag = bag
        self._rate = rate
        self._check = check
        self._tick_s = 1.0 / clock_hz
        self._began_s = 0.0
        self._ticked_s = 0.0
        self._clock = node.create_publisher(
            Clock, '/clock', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        )
        self._publishers: dict[int, Publisher] = {
            connection.id: node.create_publisher(
                message_class(connection.msgtype), connection.topic, qos_profile_sensor_data
            )
            for connection in bag.connections
        }

    def wait_for_subscribers(self, executor: SingleThreadedExecutor) -> None:
        """Hold the clock at the bag's start until `/clock` and every topic have a subscriber."""
        while not all(each.get_subscription_count() for each in (self._clock, *self._publishers.values())):
            self._publish_time(self._bag.start_time)
            executor.spin_once(timeout_sec=self._tick_s)
        # The subscriber may learn a moment later than the publisher that they match.
        self._hold_clock(self._bag.start_time)

    def play(self) -> PlaybackResult:
        """Publish every message at its time; return when the last one is out."""
        self._began_s = self._ticked_s = time.monotonic()
        stamp_ns = self._bag.start_time
        for connection, stamp_ns, data in self._bag.messages():
            self._run_clock_until(stamp_ns)
            self._publishers[connection.id].publish(bytes(data))
            late_ms = 1e3 * (time.monotonic() - self._due_s(stamp_ns))
            self.result = PlaybackResult(self.result.messages + 1, max(self.result.latest_ms, late_ms))
        # Best effort has no receipt: what no subscriber has fetched yet is lost when this process ends.
        self._hold_clock(stamp_ns)
        return self.result

    def _hold_clock(self, stamp_ns: int) -> None:
        for _ in range(max(1, round(HOLD_S / self._tick_s))):
            self._publish_time(stamp_ns)
            time.sleep(self._tick_s)

    def _run_clock_until(self, stamp_ns: int) -> None:
        """Sleep until a message is due. `/clock` ticks on meanwhile, and shows its time when the message comes."""
        due_s = self._due_s(stamp_ns)
        while (left_s := due_s - time.monotonic()) > 0:
            time.sleep(min(left_s, max(0.0, self._ticked_s + self._tick_s - time.monotonic())))
            self._publish_time(min(self._now_ns(), stamp_ns))
        self._publish_time(stamp_ns)

    def _due_s(self, stamp_ns: int) -> float:
        return self._began_s + (stamp_ns - self._bag.start_time) / 1e9 / self._rate

    def _now_ns(self) -> int:
        return self._bag.start_time + round(1e9 * self._rate * (time.monotonic() - self._began_s))

    def _publish_time(self, stamp_ns: int) -> None:
        self._check()
        self._ticked_s = time.monotonic()
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        self._clock.publish(Clock(clock=Time(sec=seconds, nanosec=nanoseconds)))


def message_class(name: str) -> type:
    """Find the Python class of a message type such as 'sensor_msgs/msg/Image'.

    Raises PlaybackError when its package is not installed.
    """
    package, _, kind = name.partition('/msg/')
    try:
        return getattr(import_module(f'{package}.msg'), kind)
    except (ImportError, AttributeError) as error:
        raise PlaybackError(
            f"The bag holds messages of type '{name}', which is not installed; install the package "
            f"'{package}', or record a bag without them."
        ) from error


def open_bag(path: Path) -> Reader:
    """Open a bag, a directory with metadata.yaml.

    Raises PlaybackError that says what was found instead.
    """
    try:
        bag = Reader(path)
        bag.open()
    except (ReaderError, OSError) as error:
        raise PlaybackError(
            f"'{path}' cannot be read as a ROS 2 bag: {error}. Expected the directory of an mcap or sqlite3 "
            'bag, with its metadata.yaml.'
        ) from error
    if bag.message_count == 0:
        bag.close()
        raise PlaybackError(f"The bag '{path}' is empty; there is nothing to play.")
    return bag


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('bag', type=Path, help='directory of the bag')
    parser.add_argument('--rate', type=float, default=1.0, help='bag seconds in a second')
    parser.add_argument('--clock', type=float, default=40.0, metavar='HZ', help='/clock messages in a second')
    parser.add_argument('--wait', action='store_true', help='start when every topic and /clock have a subscriber')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Play one bag. Returns 0, also when it is interrupted, or 2 for a bag or an argument that cannot be used."""
    args = build_parser().parse_args(argv)
    try:
        _check_positive(args)
        with Interruption() as interruption:
            _play(args, interruption.check)
    except InterruptionError:
        pass
    except PlaybackError as error:
        print_error('play', error)
        return 2
    return 0


def _check_positive(args: argparse.Namespace) -> None:
    for name in ('rate', 'clock'):
        if not 0 < getattr(args, name) < float('inf'):
            raise PlaybackError(f'--{name} is {getattr(args, name)}; expected a number above 0.')


def _play(args: argparse.Namespace, check: Callable[[], None]) -> None:
    bag = open_bag(args.bag)
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node('bag_player', enable_rosout=False)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        player = BagPlayer(node, bag, rate=args.rate, clock_hz=args.clock, check=check)
        if args.wait:
            player.wait_for_subscribers(executor)
        result = player.play()
        # Before the middleware shuts down, which takes a while: who waits for the bag need not wait for that.
        print(f'{ALL_OUT}: {result.messages}, the latest {result.latest_ms:.0f} ms behind its time', flush=True)
    finally:
        rclpy.try_shutdown()
        bag.close()


if __name__ == '__main__':
    sys.exit(main())
