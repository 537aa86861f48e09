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

"""The node on a live video: every packet is decoded in order, lost ones are counted, and answers are about pictures."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
pytest.importorskip('av', reason='PyAV is missing: pip install av')
from ffmpeg_messages import make_importable
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_harness import BUDGET
from video_recordings import KEY_EVERY, stamp, video
from vlm_reuse_interfaces.msg import Answer, RefreshBudget
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError
from vlm_reuse_node.ros import camera_input
from vlm_reuse_node.ros.camera_input import VIDEO_DEPTH, CameraInput
from vlm_reuse_node.ros.messages import header_of

TOPIC = 'camera/image_raw/ffmpeg'


@pytest.fixture(scope='module')
def packet_type(tmp_path_factory):
    """The message's class."""
    make_importable(tmp_path_factory.mktemp('messages'))
    from ffmpeg_image_transport_msgs.msg import FFMPEGPacket

    return FFMPEGPacket


def sent_now(robot):
    """The packets of a video of now."""
    begin_ns = robot.now_ns() - stamp(24)
    return [replace(packet, stamp_ns=packet.stamp_ns + begin_ns) for packet in video().packets]


def message_of(packet, kind=SimpleNamespace):
    return kind(
        header=header_of(packet.stamp_ns, packet.frame_id),
        encoding=f'{packet.codec};yuv420p;bgr8;bgr8',
        pts=packet.pts,
        flags=int(packet.is_key),
        data=packet.data,
    )


@pytest.fixture
def taker(ros, namespace, monkeypatch):
    """A camera's input that is called with messages of the same fields, and the frames that it hands over."""
    monkeypatch.setattr(camera_input, '_message_type', lambda transport: SimpleNamespace)
    node, frames = Node('taker', namespace=namespace, context=ros), []
    yield CameraInput(node, 'camera', Config(image_transport='ffmpeg'), frames.append, lambda camera: None), frames
    node.destroy_node()


def test_every_packet_becomes_the_frame_of_its_stamp(taker):
    (camera, frames), made = taker, video('hevc', b_frames=2)
    for packet in made.packets:
        camera._on_message(message_of(packet))
    stamps = [frame.stamp_ns for frame in frames]
    assert stamps == sorted(made.pictures)[: len(stamps)] and len(stamps) >= 24 - 3  # the decoder holds the last ones
    assert all(np.array_equal(frame.rgb, made.pictures[frame.stamp_ns]) for frame in frames)
    assert all(frame.received_ns > 0 and frame.frame_id == 'camera_optical' for frame in frames)
    assert camera.received == 24 and camera.refused.total() == 0


def test_lost_packets_are_counted_and_pictures_go_on_with_the_next_key_frame(taker):
    (camera, frames), packets = taker, video().packets
    for packet in [*packets[:4], *packets[6:]]:
        camera._on_message(message_of(packet))
    assert [frame.stamp_ns for frame in frames] == [stamp(number) for number in (*range(4), *range(KEY_EVERY, 24))]
    assert camera.refused == {'lost': 2, 'key frame': 2}
    assert 'next key frame' in camera.last_refusal and camera.refused_in_a_row == 0


@pytest.mark.parametrize('change', [{'data': b'\0' * 50}, {'encoding': 'rawvideo'}, {'data': b''}, {'encoding': ''}])
def test_a_broken_packet_is_a_refusal(taker, change):
    (camera, frames), packets = taker, video().packets
    message = message_of(packets[0])
    vars(message).update(change)
    camera._on_message(message)
    assert frames == [] and camera.refused.total() == 1
    for packet in packets:
        camera._on_message(message_of(packet))
    assert len(frames) == 24


def test_a_video_is_answered_about_over_dds(start, packet_type):
    """Reliably, and with room for the packets that come while the node is busy."""
    robot = start(image_transport='ffmpeg')
    budgets = robot.listen(RefreshBudget, BUDGET)
    qos = QoSProfile(depth=VIDEO_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
    camera = robot.camera(TOPIC, packet_type, qos)
    (subscription,) = robot.node.get_subscriptions_info_by_topic(camera.topic_name)
    assert subscription.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    packets = sent_now(robot)
    for packet in packets:
        camera.publish(message_of(packet, packet_type))
    robot.until(lambda: budgets and budgets[-1].frames_received == 24, 'every packet')
    assert budgets[-1].frames_refused == 0
    answer = robot.ask()
    assert answer.status == Answer.OK and answer.header == header_of(packets[-1].stamp_ns, 'camera_optical')


def test_packets_are_decoded_while_the_model_is_busy(start, packet_type, brake):
    """So the newest picture is right, although most of those before it were dropped."""
    robot = start(image_transport='ffmpeg')
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera(TOPIC, packet_type, QoSProfile(depth=60))
    packets = sent_now(robot)
    camera.publish(message_of(packets[0], packet_type))
    robot.until(lambda: budgets, 'a look')
    brake.hold()
    asked = robot.call(AskScene, 'vlm_reuse_node/ask', AskScene.Request(question='what is this ?'))
    robot.until(brake.held.is_set, 'a busy model')
    for packet in packets[1:]:
        camera.publish(message_of(packet, packet_type))
    robot.until(lambda: budgets[-1].frames_received == 24, 'every packet')
    brake.go_on.set()
    assert robot.wait(asked, 'the answer').answer.status == Answer.OK
    assert budgets[-1].frames_refused == 0
    assert robot.ask().header.stamp == header_of(packets[-1].stamp_ns, '').stamp


def test_what_is_not_installed_is_named(ros, namespace, monkeypatch):
    node = Node('taker', namespace=namespace, context=ros)
    monkeypatch.setitem(sys.modules, 'ffmpeg_image_transport_msgs.msg', None)
    with pytest.raises(ConfigError, match='Install the ROS package ffmpeg_image_transport_msgs'):
        CameraInput(node, 'camera', Config(image_transport='ffmpeg'), print, print)
    fake = SimpleNamespace(FFMPEGPacket=SimpleNamespace)
    monkeypatch.setitem(sys.modules, 'ffmpeg_image_transport_msgs', SimpleNamespace(msg=fake))
    monkeypatch.setitem(sys.modules, 'ffmpeg_image_transport_msgs.msg', fake)
    monkeypatch.setattr(camera_input, 'can_decode_video', lambda: False)
    with pytest.raises(ConfigError, match='pip install av'):
        CameraInput(node, 'camera', Config(image_transport='ffmpeg'), print, print)
    node.destroy_node()
