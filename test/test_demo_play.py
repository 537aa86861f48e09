"""The bag player as a process of its own, over real DDS: stamps kept, order kept, time published."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rclpy.qos import qos_profile_sensor_data
from ros_harness import PATIENCE_S, Robot, graph
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage

from vlm_reuse_node.demo.bag import START_NS
from vlm_reuse_node.demo.children import Child
from vlm_reuse_node.demo.play import main, message_class
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


@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_messages_arrive_as_recorded_and_in_order(tmp_path, storage):
    """Best effort may lose what is sent before the subscription knows the publisher, and nothing else here."""
    bag = write_bag(tmp_path / 'bag', storage)
    with graph() as context, Child('player', player(bag, '--wait'), tmp_path / 'log') as process:
        robot = Robot(context, '/robot')
        pictures = robot.listen(CompressedImage, TOPIC, qos_profile_sensor_data)
        clock = robot.listen(Clock, '/clock', qos_profile_sensor_data)
        robot.until(lambda: process.has_ended, 'the end of the player')
        robot.until(lambda: pictures and pictures[-1].header.frame_id == f'lens {COUNT - 1}', 'the last message')
        process.check()
    first = COUNT - len(pictures)
    assert first <= COUNT // 4
    assert [stamp_ns(picture.header) for picture in pictures] == [
        START_NS + number * PERIOD_NS - EXPOSURE_NS for number in range(first, COUNT)
    ]
    assert [picture.header.frame_id for picture in pictures] == [f'lens {number}' for number in range(first, COUNT)]
    assert [set(picture.data) for picture in pictures] == [{number} for number in range(first, COUNT)]
    times = [message.clock.sec * 1_000_000_000 + message.clock.nanosec for message in clock]
    assert times == sorted(times) and times[0] <= START_NS + PERIOD_NS * COUNT // 4
    assert times[-1] == START_NS + (COUNT - 1) * PERIOD_NS


def test_the_player_keeps_the_bags_pace(tmp_path):
    bag = write_bag(tmp_path / 'bag', StoragePlugin.MCAP)
    with graph() as context, Child('player', player(bag, '--wait', '--rate', '0.5'), tmp_path / 'log') as process:
        robot, arrived_s = Robot(context, '/robot'), []
        robot.listen(Clock, '/clock', qos_profile_sensor_data)
        robot.node.create_subscription(
            CompressedImage, TOPIC, lambda _: arrived_s.append(time.monotonic()), qos_profile_sensor_data
        )
        robot.until(lambda: process.has_ended and len(arrived_s) >= COUNT * 3 // 4, 'the messages')
    # Half as fast as recorded; a busy machine delays, but never all of them by so much.
    assert arrived_s[-1] - arrived_s[0] > 1.5 * (len(arrived_s) - 1) * PERIOD_NS / 1e9


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
