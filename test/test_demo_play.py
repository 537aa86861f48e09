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

"""The bag player: stamps, order and pace kept, time published; on a clock of the test's own, and over real DDS."""

import signal
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from patience import PATIENCE_S
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from ros_harness import Robot, graph
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage

from vlm_reuse_node.demo import play
from vlm_reuse_node.demo.bag import START_NS
from vlm_reuse_node.demo.children import Child
from vlm_reuse_node.demo.play import ALL_OUT, BagPlayer, main, message_class, open_bag
from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.ros.conversion import stamp_ns

TOPIC, KIND, COUNT, PERIOD_NS = '/lens/image_raw/compressed', 'sensor_msgs/msg/CompressedImage', 12, 50_000_000
# The camera's stamps are older than the times of recording, as on a robot.
EXPOSURE_NS = 7_000_000


def write_bag(path, storage, kind=KIND):
    """A bag of tiny messages that only this test can tell apart."""
    types = get_typestore(Stores.ROS2_KILTED)
    time_type, header_type = types.types['builtin_interfaces/msg/Time'], types.types['std_msgs/msg/Header']
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connection = writer.add_connection(TOPIC, kind, typestore=types)
        for number in range(COUNT):
            recorded_ns = START_NS + number * PERIOD_NS
            stamp = time_type(*divmod(recorded_ns - EXPOSURE_NS, 1_000_000_000))
            message = types.types[kind](header_type(stamp, f'lens {number}'), 'jpeg', np.full(100, number, np.uint8))
            writer.write(connection, recorded_ns, types.serialize_cdr(message, kind))
    return path


def player(path, *arguments):
    return [sys.executable, '-m', 'vlm_reuse_node.demo.play', str(path), *arguments]


class Stage:
    """A node whose publishers note what they send and when, and a clock that sleeping moves."""

    def __init__(self):
        self.now_s, self.sent = 100.0, []

    def create_publisher(self, kind, topic, qos):
        return SimpleNamespace(publish=lambda message: self.sent.append((topic, self.now_s, message)))

    def monotonic(self):
        self.now_s += 1e-6
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds


@pytest.mark.parametrize('rate', [0.5, 1.0, 4.0])
@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_every_message_goes_out_as_recorded_when_it_is_due_and_the_clock_runs_with_it(
    tmp_path, monkeypatch, storage, rate
):
    stage, bag = Stage(), open_bag(write_bag(tmp_path / 'bag', storage))
    monkeypatch.setattr(play, 'time', stage)
    played = BagPlayer(stage, bag, rate=rate, clock_hz=40.0).play()
    bag.close()
    assert played.messages == COUNT and played.latest_ms < 1.0
    pictures = [
        (sent_s, deserialize_message(data, CompressedImage)) for topic, sent_s, data in stage.sent if topic == TOPIC
    ]
    assert [recorded(picture) for _, picture in pictures] == list(range(COUNT))
    due_s = [pictures[0][0] + number * PERIOD_NS / 1e9 / rate for number in range(COUNT)]
    assert [sent_s for sent_s, _ in pictures] == pytest.approx(due_s, abs=1e-3)

    ticks_s = [sent_s for topic, sent_s, _ in stage.sent if topic == '/clock']
    assert max(later_s - earlier_s for earlier_s, later_s in pairwise(ticks_s)) < 1 / 40 + 1e-3
    times_ns = [time_ns(message) for topic, _, message in stage.sent if topic == '/clock']
    assert times_ns == sorted(times_ns) and times_ns[-1] == START_NS + (COUNT - 1) * PERIOD_NS
    before = [time_ns(earlier) for (_, _, earlier), (topic, _, _) in pairwise(stage.sent) if topic == TOPIC]
    assert before == [START_NS + number * PERIOD_NS for number in range(COUNT)]


def recorded(picture):
    """The number of a message of the bag, after checking that it is as it was recorded."""
    number = int(picture.header.frame_id.removeprefix('lens '))
    assert stamp_ns(picture.header) == START_NS + number * PERIOD_NS - EXPOSURE_NS
    assert picture.format == 'jpeg' and set(picture.data) == {number}
    return number


def time_ns(message):
    return message.clock.sec * 1_000_000_000 + message.clock.nanosec


def test_messages_arrive_as_recorded_and_in_order(tmp_path):
    """Best effort may lose some, wherever the machine is too busy to fetch them; it adds and exchanges none."""
    bag = write_bag(tmp_path / 'bag', StoragePlugin.MCAP)
    with graph() as context, Child('player', player(bag, '--wait'), tmp_path / 'log') as process:
        robot, roomy = Robot(context, '/robot'), QoSProfile(depth=500, reliability=ReliabilityPolicy.BEST_EFFORT)
        pictures, clock = robot.listen(CompressedImage, TOPIC, roomy), robot.listen(Clock, '/clock', roomy)
        robot.until(lambda: process.has_ended, 'the end of the player')
        robot.until(lambda: pictures and clock, 'a message')
        process.check()
        assert f'{ALL_OUT}: {COUNT}' in process.tail()
    numbers, times_ns = [recorded(picture) for picture in pictures], [time_ns(message) for message in clock]
    assert numbers == sorted(set(numbers)) and times_ns == sorted(times_ns)


@pytest.mark.parametrize('request_', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_while_it_waits(tmp_path, request_):
    bag = write_bag(tmp_path / 'bag', StoragePlugin.MCAP)
    process = subprocess.Popen(player(bag, '--wait'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        with graph() as context:
            Robot(context, '/robot').listen(Clock, '/clock', qos_profile_sensor_data)
        process.send_signal(request_)
        assert process.wait(PATIENCE_S) == 0
        assert 'Traceback' not in process.stdout.read()
    finally:
        process.kill()


def test_what_is_no_bag_is_named(tmp_path, capsys):
    assert main([str(tmp_path / 'nothing')]) == 2
    assert "nothing' cannot be read as a ROS 2 bag" in capsys.readouterr().err


def test_a_rate_of_nothing_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), '--rate', '0']) == 2
    assert '--rate is 0.0; expected a number above 0' in capsys.readouterr().err


def test_a_type_that_is_not_installed_is_named():
    with pytest.raises(VlmReuseError, match="install the package 'lidar_msgs'"):
        message_class('lidar_msgs/msg/Cloud')
    with pytest.raises(VlmReuseError, match='sensor_msgs/msg/Imagination'):
        message_class('sensor_msgs/msg/Imagination')
