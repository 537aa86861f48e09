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

"""What the node says about a camera that sends nothing, or something else than it should; over DDS."""

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from builtin_interfaces.msg import Duration, Time

rclpy = pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_harness import BUDGET, graph, picture_message, show
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from vlm_reuse_interfaces.msg import Answer, RefreshBudget

from vlm_reuse_node.ros import middleware, node_time, notices
from vlm_reuse_node.ros.arrivals import Arrivals
from vlm_reuse_node.ros.graph import TRANSPORTS, hint, topic_of
from vlm_reuse_node.ros.messages import seconds_of
from vlm_reuse_node.ros.stamps import IMPOSSIBLE, NONE, STANDING, Stamps
from vlm_reuse_node.scene.frame import Frame

FIVE = Duration(sec=5)
SECOND_NS = 1_000_000_000
NOW_NS = 1_790_000_000 * SECOND_NS
RELIABLE = QoSProfile(depth=10)
BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)


@pytest.fixture
def steady(monkeypatch):
    """The steady clock as the node's time sees it; `ahead_s` moves it."""
    clock = SimpleNamespace(ahead_s=0.0)
    clock.monotonic = lambda: time.monotonic() + clock.ahead_s
    monkeypatch.setattr(node_time, 'time', clock)
    return clock


def message_of(diagnostics, part='camera camera'):
    return diagnostics().get(part, DiagnosticStatus()).message


def clock_of(robot):
    clock = robot.node.create_publisher(Clock, '/clock', RELIABLE)
    robot.until(clock.get_subscription_count, 'a subscription of /clock')
    return clock


def test_without_clock_the_answer_names_use_sim_time_and_clock(start):
    robot = start(use_sim_time=True)
    answer = robot.ask()
    assert answer.status == Answer.NO_IMAGE and 'use_sim_time' in answer.message and '/clock' in answer.message
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    for answer in (robot.ask(max_age=FIVE), robot.ask_cold(max_age=FIVE)):
        assert answer.status == Answer.STALE and not answer.text
        assert 'use_sim_time' in answer.message and '/clock' in answer.message
    assert robot.ask(camera='no_such').status == Answer.INVALID_REQUEST
    diagnostics = robot.diagnostics()
    robot.until(lambda: '/clock' in message_of(diagnostics), 'the reason')


def test_a_camera_that_ends_together_with_the_clock_gets_old(start, steady):
    robot = start(use_sim_time=True)
    clock = clock_of(robot)
    clock.publish(Clock(clock=Time(sec=100)))
    robot.until(lambda: robot.scene._time._read() == 100 * SECOND_NS, 'the clock')
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET), stamp_ns=100 * SECOND_NS)
    assert robot.ask(max_age=FIVE).status == Answer.OK
    steady.ahead_s = 15.0
    answer = robot.ask(max_age=FIVE)
    assert answer.status == Answer.STALE and '/clock has stood still at 100.00 s for 15.' in answer.message
    patient = robot.ask(max_age=Duration(sec=60))
    assert patient.status == Answer.OK and 15 <= seconds_of(patient.image_age) < 60
    diagnostics = robot.diagnostics()
    robot.until(lambda: '/clock has stood still' in message_of(diagnostics), 'the reason')
    clock.publish(Clock(clock=Time(sec=101)))
    answer = robot.until(
        lambda: next((a for a in [robot.ask(max_age=FIVE)] if a.status == Answer.OK), None), 'the clock to go on'
    )
    assert seconds_of(answer.image_age) == pytest.approx(1.0)


@pytest.mark.parametrize('stamp_ns', [-5 * SECOND_NS, NOW_NS + 10**9 * SECOND_NS])
def test_a_picture_with_an_impossible_stamp_counts_as_taken_when_it_arrived(robot, stamp_ns):
    budgets, before_ns = robot.listen(RefreshBudget, BUDGET), robot.now_ns()
    stamp_ns = min(stamp_ns, (2**31 - 1) * SECOND_NS)
    show(robot, robot.camera(), budgets, stamp_ns=stamp_ns)
    answer = robot.ask(max_age=FIVE)
    assert answer.status == Answer.OK and answer.header.stamp.sec * SECOND_NS >= before_ns - SECOND_NS
    diagnostics = robot.diagnostics()
    robot.until(lambda: IMPOSSIBLE in message_of(diagnostics), 'the reason')


def frames(stamps_ns, pictures=None):
    for number, stamp_ns in enumerate(stamps_ns):
        shown = number if pictures is None else pictures[number]
        yield Frame(np.full((2, 2, 3), shown, np.uint8), stamp_ns)


def placed(stamps_ns, step_s, pictures=None):
    """The stamps that pictures get which arrive every `step_s`, as seconds from the first arrival; and the trouble."""
    stamps, found = Stamps(), []
    for number, frame in enumerate(frames(stamps_ns, pictures)):
        frame = stamps.place(frame, NOW_NS + round(number * step_s * 1e9), number * step_s)
        found.append((frame.stamp_ns - NOW_NS) / 1e9)
    return found, stamps.trouble


def test_stamps_that_move_are_kept_with_their_jitter():
    given = [NOW_NS + step for step in (0, 33_000_000, 20_000_000, 66_000_000)]
    assert placed(given, 0.033) == ([0, 0.033, 0.02, 0.066], '')


def test_stamps_that_stand_still_give_way_to_the_time_of_arrival_after_a_second():
    assert placed([NOW_NS - 7] * 4, 0.4, [1] * 4) == ([-7e-9, -7e-9, -7e-9, pytest.approx(1.2)], STANDING)


def test_a_frozen_camera_that_repeats_its_last_picture_gets_old():
    stamps = [NOW_NS, NOW_NS + SECOND_NS, *[NOW_NS + 2 * SECOND_NS] * 4]
    assert placed(stamps, 1.0, [0, 1, 2, 2, 2, 2]) == ([0, 1, 2, 2, 2, 2], '')
    assert placed(stamps, 1.0) == ([0, 1, 2, 2, 4, 5], STANDING)


@pytest.mark.parametrize(
    'stamp_ns, trouble', [(0, NONE), (-1, IMPOSSIBLE), (NOW_NS + 2 * 86_400 * SECOND_NS, IMPOSSIBLE)]
)
def test_a_stamp_that_tells_nothing_is_replaced_by_the_arrival(stamp_ns, trouble):
    assert placed([stamp_ns], 1.0) == ([0], trouble)


def test_before_anybody_told_the_time_no_stamp_is_ahead():
    frame = Stamps().place(Frame(np.zeros((2, 2, 3), np.uint8), NOW_NS), 0, 0.0)
    assert frame.stamp_ns == NOW_NS and frame.received_ns == 0


def numbered(*numbers, publisher=b'a'):
    for number in numbers:
        yield {'publication_sequence_number': number, 'publisher_gid': {'data': publisher}}


def test_gaps_in_the_numbers_of_each_publisher_are_counted():
    arrivals = Arrivals()
    for info in (*numbered(5, 6, 9), *numbered(1, 3, publisher=b'b'), *numbered(10), *numbered(1, 2)):
        arrivals.note(info, 0)
    assert arrivals.missed == 3


def test_publishers_mix_when_one_sends_again_after_another():
    arrivals = Arrivals()
    for info in (*numbered(1, 2, 3), *numbered(1, 2, 3, publisher=b'b')):  # a driver that was started anew
        arrivals.note(info, 0)
    assert arrivals.mixed == 0
    for info in (*numbered(4), *numbered(4, publisher=b'b')):
        arrivals.note(info, 0)
    assert arrivals.mixed == 2


def test_who_sent_a_picture_is_told_by_its_number_where_ros_does_not_say_it():
    arrivals = Arrivals()
    for number in (100, 101, 1, 2, 3):  # a driver that was started anew
        arrivals.note({'publication_sequence_number': number}, 0)
    assert arrivals.mixed == arrivals.missed == 0
    for number in (102, 4, 103, 5):
        arrivals.note({'publication_sequence_number': number}, 0)
    assert arrivals.mixed == 4 and arrivals.missed == 0


@pytest.mark.parametrize(
    'numbers, mixed, missed',
    [
        ((10, 90000, 11, 90001, 12), 3, 0),  # two that have been running for a time
        ((199, 200, *range(1, 199), 202, 203), 0, 3),  # started anew, and lost pictures where the old one had ended
        ((199, 200, *range(1, 400, 2)), 0, 199),  # started anew, and half of its pictures are lost
    ],
)
def test_numbers_alone_tell_publishers_and_losses_apart(numbers, mixed, missed):
    arrivals = Arrivals()
    for number in numbers:
        arrivals.note({'publication_sequence_number': number}, 0)
    assert (arrivals.mixed, arrivals.missed) == (mixed, missed)


def test_without_numbers_the_rhythm_of_the_stamps_tells():
    arrivals, at_ms = Arrivals(), 0
    for step_ms in [33, 33, 33, 200] * 6:
        at_ms += step_ms
        arrivals.note({}, at_ms * 1_000_000)
    assert arrivals.missed == 5 * 4  # after the first few steps
    arrivals = Arrivals()
    for number in range(40):  # a driver that is slow, and one without a rhythm
        arrivals.note({}, number * SECOND_NS)
    slow, at_ms = arrivals.missed, 0
    arrivals = Arrivals()
    for step_ms in np.random.default_rng(0).integers(10, 500, 60):
        at_ms += int(step_ms)
        arrivals.note({}, at_ms * 1_000_000)
    assert slow == arrivals.missed == 0


def test_only_compressed_pictures_are_published(robot):
    robot.node.create_publisher(CompressedImage, 'camera/image_raw/compressed', RELIABLE)
    robot.until(lambda: 'image_transport:=compressed' in robot.ask().message, 'the hint')
    diagnostics = robot.diagnostics()
    robot.until(lambda: 'image_transport:=compressed' in message_of(diagnostics), 'the hint')


def test_only_raw_pictures_are_published(start):
    robot = start(image_transport='compressed')
    robot.node.create_publisher(Image, 'camera/image_raw', RELIABLE)
    robot.until(lambda: 'image_transport:=raw' in robot.ask().message, 'the hint')


def test_the_topic_has_another_type(robot):
    with graph() as other:
        node = rclpy.create_node('talker', namespace=robot.namespace, context=other)
        node.create_publisher(String, 'camera/image_raw', RELIABLE)
        robot.until(lambda: 'std_msgs/msg/String' in robot.ask().message, 'the hint')


def test_the_topics_with_pictures_are_named(robot):
    robot.node.create_publisher(Image, 'lens/picture', RELIABLE)
    robot.until(lambda: f'{robot.namespace}/lens/picture' in robot.ask().message, 'the hint')
    assert 'Nobody publishes' in robot.ask().message


def test_a_hint_names_few_topics_and_is_none_when_the_right_publisher_is_there():
    image = TRANSPORTS['raw']
    pictures = {f'/{name}': [image] for name in 'abcde'}
    text = hint('camera', '/camera/image_raw', 'raw', [], pictures)
    assert '/a, /b, /c and others' in text and '/d' not in text
    assert hint('camera', '/camera/image_raw', 'raw', ['x/msg/Y', image], pictures) == ''
    assert 'to /camera/image_raw' in hint('camera', '/camera/image_raw', 'raw', [TRANSPORTS['compressed']], pictures)


@pytest.mark.parametrize('given', TRANSPORTS)
@pytest.mark.parametrize('published', TRANSPORTS)
def test_a_hint_names_the_image_transport_that_is_published(given, published):
    topic, base = topic_of('/front/image_raw', published), '/front/image_raw'
    offered = [TRANSPORTS[published]] if given == published else []
    text = hint('front', base, given, offered, {topic: [TRANSPORTS[published]]})
    assert (text == '') if given == published else (topic in text and f'image_transport:={published}.' in text)


def test_two_publishers_on_one_topic_whose_pictures_mix_are_named(robot):
    diagnostics, budgets, camera = robot.diagnostics(), robot.listen(RefreshBudget, BUDGET), robot.camera()
    other = rclpy.create_node('other_driver', namespace=robot.namespace, context=robot.context)
    second = other.create_publisher(Image, 'camera/image_raw', RELIABLE)
    robot.until(second.get_subscription_count, 'the second subscription')

    def warned():
        for publisher in (camera, second):
            show(robot, publisher, budgets)
        return '2 publishers' in message_of(diagnostics)

    robot.until(warned, 'the warning')
    assert 'other_driver' in message_of(diagnostics) and f'{robot.namespace}/robot' in message_of(diagnostics)
    other.destroy_node()


def test_a_best_effort_camera_that_joins_a_reliable_one_is_heard_too(robot, capfd):
    budgets, first = robot.listen(RefreshBudget, BUDGET), robot.camera(qos=RELIABLE)
    show(robot, first, budgets)
    later = robot.node.create_publisher(Image, 'camera/image_raw', BEST_EFFORT)
    seen = len(budgets)

    def heard():
        later.publish(picture_message(3, stamp_ns=robot.now_ns()))
        return len(budgets) > seen

    robot.until(heard, 'a picture of the later camera')
    show(robot, first, budgets)
    ours = [line for line in capfd.readouterr().err.splitlines() if 'vlm_reuse_node]' in line]
    assert not any('incompatible' in line for line in ours)


def test_another_node_of_the_same_name_is_a_warning(robot, ros):
    diagnostics = robot.diagnostics()
    twin = rclpy.create_node('vlm_reuse_node', namespace=robot.namespace, context=ros)
    robot.until(lambda: 'Another node has the name' in message_of(diagnostics, 'life cycle'), 'the warning')
    assert diagnostics()['life cycle'].level == DiagnosticStatus.WARN
    twin.destroy_node()


def test_pictures_that_a_publisher_sent_and_the_node_never_got_are_counted(robot):
    """The publisher numbers its messages; while nobody subscribes best effort ones are lost."""
    diagnostics, budgets, camera = robot.diagnostics(), robot.listen(RefreshBudget, BUDGET), robot.camera()
    show(robot, camera, budgets)
    taken = robot.scene._cameras._inputs['camera']
    subscription = taken._subscription
    taken._subscription = None  # it is replaced without a word to the counts, as if the messages had got lost
    subscription.destroy()
    robot.until(lambda: not camera.get_subscription_count(), 'no subscription')
    for _ in range(9):
        camera.publish(picture_message())
    taken._subscription = type(subscription)(robot.scene, Image, 'camera/image_raw', taken._on_taken)
    robot.until(camera.get_subscription_count, 'a subscription')
    show(robot, camera, budgets)
    assert taken.state().missed >= 9
    robot.until(lambda: 'camera camera' in diagnostics(), 'the diagnostics')
    values = {pair.key: pair.value for pair in diagnostics()['camera camera'].values}
    assert values['transport'] == taken.state().way
    assert 'Fast DDS' not in taken.state().way or taken.state().way == 'Fast DDS, shared memory'


def test_a_notice_is_logged_once(start, capfd, monkeypatch):
    monkeypatch.setattr(notices, 'HOLDS_S', 0.0)
    robot = start(use_sim_time=True)
    robot.node.create_publisher(CompressedImage, 'camera/image_raw/compressed', RELIABLE)
    lines = []

    def said():
        lines.extend(capfd.readouterr().err.splitlines())
        return [line for line in lines if 'image_transport:=compressed' in line]

    robot.until(said, 'the hint in the log')
    for _ in range(3):  # more looks
        robot.scene._monitor.publish()
    assert len(said()) == 1
    assert len([line for line in lines if 'use_sim_time is set' in line]) == 1


def test_the_profile_for_large_pictures_is_used_unless_the_user_has_chosen(monkeypatch, tmp_path):
    name = 'FASTDDS_DEFAULT_PROFILES_FILE'
    monkeypatch.chdir(tmp_path)
    for each in middleware.CHOSEN:
        monkeypatch.setenv(each, 'mine')
        middleware.make_room()
        assert os.environ.pop(each) == 'mine' and name not in os.environ
    (tmp_path / middleware.DEFAULT_PROFILE).touch()
    middleware.make_room()
    assert name not in os.environ
    (tmp_path / middleware.DEFAULT_PROFILE).unlink()
    monkeypatch.setenv(name, 'as it was')  # so that it is put back
    monkeypatch.delenv(name)
    middleware.make_room()
    assert os.environ[name].endswith(middleware.PROFILE) and os.path.isfile(os.environ[name])


def test_the_way_of_a_picture_and_its_remedy(monkeypatch, tmp_path):
    here, elsewhere = [1, 15, 7, 7, 1], [1, 15, 8, 8, 1]
    monkeypatch.setattr(middleware, 'get_rmw_implementation_identifier', lambda: 'rmw_fastrtps_cpp')
    assert middleware.way_of(here, [1, 15, 7, 7, 2]) == 'Fast DDS, shared memory'
    assert middleware.way_of(here, elsewhere) == middleware.way_of(here, ()) == 'Fast DDS, UDP'
    monkeypatch.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'UDPv4')
    assert middleware.way_of(here, here) == 'Fast DDS, UDP'
    monkeypatch.setattr(middleware, 'get_rmw_implementation_identifier', lambda: 'rmw_cyclonedds_cpp')
    assert middleware.way_of(here, here) == 'Cyclone DDS, UDP'
    assert middleware.PROFILE in middleware.remedy('Fast DDS, shared memory')
    limit = tmp_path / 'rmem_max'
    limit.write_text('212992\n')
    monkeypatch.setattr(middleware, 'RECEIVE_LIMIT', limit)
    assert 'rmem_max, here only 208 KB' in middleware.remedy('Cyclone DDS, UDP')
    limit.unlink()
    assert 'rmem_max)' in middleware.remedy('Fast DDS, UDP')
