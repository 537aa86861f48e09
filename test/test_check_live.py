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

"""The check's pictures from a live topic."""

import threading

import numpy as np
import pytest
from patience import PATIENCE_S
from tiny_model import picture

pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
import ros_harness  # noqa: F401  (sets the domain)
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vlm_reuse_node.check import cli, pictures
from vlm_reuse_node.check import live as lives
from vlm_reuse_node.check.live import LiveError, live
from vlm_reuse_node.errors import ConfigError
from vlm_reuse_node.ros.conversion import image_message

TOPIC = '/check/image_raw'


@pytest.fixture
def publish(ros):
    """Publishes a message again and again until the test ends."""
    over, threads = threading.Event(), []

    def start(message, topic=TOPIC):
        node = ros_harness.rclpy.create_node('camera', context=ros, enable_rosout=False)
        publisher = node.create_publisher(type(message), topic, qos_profile_sensor_data)

        def run():
            while not over.wait(0.02):
                publisher.publish(message)
            node.destroy_node()

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    over.set()
    for thread in threads:
        thread.join()


@pytest.fixture(autouse=True)
def no_gap(monkeypatch):
    monkeypatch.setattr(lives, 'GAP_S', 0.0)


def test_pictures_come_from_a_topic(publish):
    rgb = picture(1, size=(48, 64)).rgb
    publish(image_message(rgb, Header()))
    found = live(TOPIC, PATIENCE_S)
    assert len(found.frames) == pictures.COUNT and found.source == f'of live topic {TOPIC}'
    assert all(np.array_equal(frame.rgb, rgb) for frame in found.frames)


def test_a_topic_without_pictures_is_one_line(publish, capsys, tmp_path):
    publish(Header(), '/check/header')
    for topic in ('/check/header', '/check/nothing'):
        assert cli.main(['--topic', topic, '--timeout', '0.5', '--out', str(tmp_path)]) == cli.EXIT_FAILED
        said = capsys.readouterr().err
        assert f"No picture came on '{topic}'" in said and said.count('\n') == 1


def test_the_topics_that_there_are_are_named(publish):
    publish(image_message(picture(1, size=(48, 64)).rgb, Header()))
    live(TOPIC, PATIENCE_S)
    with pytest.raises(LiveError, match=TOPIC):
        live('/check/other', 5.0)


def test_pictures_that_cannot_be_used_are_told(publish):
    publish(CompressedImage(format='jpeg', data=b'nothing'))
    with pytest.raises(LiveError, match='cannot be used'):
        live(TOPIC, 3.0)


def test_a_wrong_name_is_told():
    with pytest.raises(ConfigError, match='no name of a topic'):
        live('//wrong name', 0.1)


def test_types_are_those_of_a_camera():
    assert set(lives.TYPES.values()) == {Image, CompressedImage}
