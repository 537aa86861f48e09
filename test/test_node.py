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

"""The node over real DDS with a real (tiny) model: pictures and questions in, answers and accounts out."""

import array
import time

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Duration, Time
from patience import PATIENCE_S

rclpy = pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_harness import (
    BUDGET,
    FRAME,
    FULL,
    MINUTE,
    REUSE,
    Robot,
    ask_and_refresh,
    levels,
    picture_message,
    scene_node,
    set_parameter,
    show,
)
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from vlm_reuse_interfaces.msg import Answer, RefreshBudget
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, ModelError
from vlm_reuse_node.ros.camera_input import CameraInput
from vlm_reuse_node.ros.messages import seconds_of
from vlm_reuse_node.scene.overlay import BAR_HEIGHT
from vlm_reuse_node.session.question import LONGEST_QUESTION_CHARS


def since_s(robot, then_ns):
    return (robot.now_ns() - then_ns) / 1e9


def test_a_question_is_answered_from_the_newest_picture(robot):
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    show(robot, camera, budgets, seed=1)
    before_ns = robot.now_ns()
    stamp = show(robot, camera, budgets, seed=2)
    first, answer, again = (robot.ask(max_tokens=count) for count in (3, 4, 4))
    assert (first.level, answer.level) == (FULL, REUSE) and first.header == answer.header
    assert first.token_ids == answer.token_ids[:3]
    assert (answer.remembered, again.remembered) == (False, True) and again.token_ids == answer.token_ids
    assert answer.status == Answer.OK and answer.text and answer.tokens_generated == 4
    assert (answer.header.stamp, answer.header.frame_id, answer.camera) == (stamp, 'lens', 'camera')
    assert 0 < seconds_of(answer.image_age) < since_s(robot, before_ns) and answer.model == 'tiny'
    assert answer.tokens_reused > answer.tokens_prefilled > 0


def test_the_refresh_budget_carries_the_source_header_and_adds_up(robot):
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    assert set_parameter(robot, 'upkeep_share', 0.0).successful
    show(robot, camera, budgets, seed=1)
    first = ask_and_refresh(robot, budgets)[1]
    show(robot, camera, budgets, seed=1)
    stamp = show(robot, camera, budgets, seed=2)
    changed = ask_and_refresh(robot, budgets)[1]
    look, _, same, other, _ = budgets
    assert levels(budgets) == [REUSE, FULL, REUSE, REUSE, FRAME]
    for message in (changed, other):
        assert (message.header.stamp, message.header.frame_id, message.camera) == (stamp, 'lens', 'camera')
    assert first.visual_tokens_refreshed == first.visual_tokens_total > 0 == look.visual_tokens_refreshed
    assert look.visual_tokens_stale == look.visual_tokens_total and look.work_ms_total == look.cold_ms_total == 0
    assert same.visual_tokens_stale == seconds_of(same.lag) == 0 < other.visual_tokens_stale
    assert seconds_of(other.lag) > 0 and changed.visual_tokens_stale == seconds_of(changed.lag) == 0
    assert (changed.frames_received, changed.frames_dropped, changed.frames_refused) == (3, 0, 0)
    assert changed.spent_ms == pytest.approx(changed.change_ms + changed.vision_ms + changed.prefill_ms, rel=1e-5)
    assert 0 < same.work_ms_total and 0 < same.cold_ms_total


def test_a_question_that_allows_a_lag_gets_the_kept_state_and_is_told_so(robot):
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    assert set_parameter(robot, 'upkeep_share', 0.0).successful
    old = show(robot, camera, budgets, seed=1)
    robot.ask()
    new = show(robot, camera, budgets, seed=2)
    kept = robot.ask(max_lag=MINUTE)
    assert (kept.status, kept.level, kept.header.stamp, kept.cached_stamp) == (Answer.OK, REUSE, old, old)
    assert kept.exact and 0 < seconds_of(kept.lag) < seconds_of(kept.image_age)
    fresh = robot.ask(max_lag=Duration(nanosec=1))
    assert (fresh.level, fresh.header.stamp, fresh.cached_stamp) == (FRAME, new, new) and seconds_of(fresh.lag) == 0
    show(robot, camera, budgets, seed=3)
    assert set_parameter(robot, 'max_lag_s', 3600.0).successful
    assert robot.ask().header.stamp == new and robot.ask(force_refresh=True).header.stamp == budgets[-1].header.stamp


def test_a_cold_answer_is_the_warm_one_from_nothing_and_leaves_the_state(robot):
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    show(robot, camera, budgets)
    ask_and_refresh(robot, budgets, question='what is it ?')
    warm, cold, again = robot.ask(max_tokens=5), robot.ask_cold(max_tokens=5), robot.ask(max_tokens=6)
    assert not warm.remembered and not cold.remembered and not again.remembered
    assert cold.status == Answer.OK and cold.cached_stamp == warm.cached_stamp == again.cached_stamp
    assert cold.text == warm.text and cold.token_ids == warm.token_ids == again.token_ids[:5]
    assert (cold.tokens_reused, cold.level) == (0, FULL) and cold.refresh_ms > 0
    assert again.tokens_reused == warm.tokens_reused > 0
    show(robot, camera, budgets)
    assert levels(budgets) == [REUSE, FULL, REUSE]


def test_choices_are_answered_by_one_of_them_with_its_probability(robot):
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    answer = robot.ask(choices=['red', 'green', 'blue'])
    assert answer.status == Answer.OK and answer.text == ['red', 'green', 'blue'][answer.choice_index]
    assert len(answer.choice_scores) == 3 and sum(answer.choice_scores) == pytest.approx(1.0, abs=1e-4)


def test_before_the_first_picture_the_answer_says_what_is_missing(robot):
    answer = robot.ask()
    assert answer.status == Answer.NO_IMAGE and not answer.text
    assert 'Nobody publishes' in answer.message and 'camera/image_raw' in answer.message


def test_a_camera_that_stopped_gives_stale_with_its_age(robot):
    taken_ns = robot.now_ns() - 5_000_000_000
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET), stamp_ns=taken_ns)
    answer = robot.ask(max_age=Duration(sec=1))
    assert answer.status == Answer.STALE and 5 <= seconds_of(answer.image_age) < since_s(robot, taken_ns)
    assert robot.ask().status == Answer.OK


@pytest.mark.parametrize(
    'request_fields, named',
    [
        ({'question': ''}, 'empty'),
        ({'question': '  \n'}, 'empty'),
        ({'question': 'x' * (LONGEST_QUESTION_CHARS + 1)}, str(LONGEST_QUESTION_CHARS)),
        ({'question': 'what is <|image_pad|> ?'}, 'image_pad'),
        ({'camera': 'rear'}, 'rear'),
        ({'json_schema': '{'}, 'json_schema'),
        ({'max_age': Duration(sec=-1)}, 'max_age'),
        ({'max_lag': Duration(sec=-1, nanosec=900_000_000)}, 'max_lag'),
        ({'timeout': Duration(sec=-1, nanosec=900_000_000)}, 'timeout'),
        ({'choices': ['yes', 'yes']}, 'different'),
        ({'choices': ['']}, 'choice'),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(shared, request_fields, named):
    answer = shared.ask(**request_fields)
    assert answer.status == Answer.INVALID_REQUEST and named in answer.message and not answer.text


@pytest.fixture(scope='module')
def shared(ros, model_dir):
    """One node, with a picture, for tests that leave it as it was."""
    with scene_node(ros, '/shared', model=str(model_dir)):
        robot = Robot(ros, '/shared')
        show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
        yield robot


def roomy(namespace):
    """The camera's subscription keeps every picture, for tests that count a burst of them."""
    return {f'qos_overrides.{namespace}/camera/image_raw.subscription.depth': 50}


def broken(**changes):
    message = picture_message()
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_bad_pictures_are_counted_by_cause_and_the_node_stays_up(start, namespace):
    robot = start(**roomy(namespace))
    budgets, diagnostics = robot.listen(RefreshBudget, BUDGET), robot.diagnostics()
    camera = robot.camera(qos=QoSProfile(depth=50))  # reliable, so that every one arrives
    bad = [
        broken(data=array.array('B', b'\0' * 100)),
        broken(encoding='martian'),
        broken(step=3),
        broken(width=0),
        broken(width=2**32 - 1, height=2**32 - 1),
    ]
    for message in bad:
        camera.publish(message)

    def refused():
        status = diagnostics().get('camera camera')
        return status and {v.key: v.value for v in status.values}.get('pictures refused') == '5' and status

    status = robot.until(refused, 'five refusals')
    values = {pair.key: pair.value for pair in status.values}
    assert [values[f'refused: {cause}'] for cause in ('truncated', 'encoding', 'step', 'size')] == ['1', '1', '1', '2']
    assert status.level == DiagnosticStatus.ERROR and 'All 5 pictures were refused' in status.message
    answer = robot.ask()
    assert answer.status == Answer.NO_IMAGE and 'refused' in answer.message
    show(robot, camera, budgets)
    assert robot.ask().status == Answer.OK and budgets[-1].frames_refused == 5 and budgets[-1].frames_received == 6


def test_a_picture_that_only_the_model_refuses_is_refused_of_its_camera(robot):
    diagnostics, camera = robot.diagnostics(), robot.camera()
    camera.publish(picture_message(stamp_ns=robot.now_ns(), size=(4, 1024)))
    robot.until(lambda: 'refused' in diagnostics().get('camera camera', DiagnosticStatus()).message, 'the refusal')
    assert diagnostics()['model'].level == DiagnosticStatus.OK
    answer = robot.ask()
    assert answer.status == Answer.NO_IMAGE and 'refused' in answer.message
    show(robot, camera, robot.listen(RefreshBudget, BUDGET))
    assert robot.ask().status == Answer.OK


def test_a_refresh_of_an_older_picture_does_not_make_a_refused_camera_usable(robot):
    """Only a look says that the model can take what the camera sends now."""
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    show(robot, camera, budgets)
    camera.publish(picture_message(stamp_ns=robot.now_ns(), size=(4, 1024)))
    taken = robot.scene._cameras._inputs['camera']
    robot.until(lambda: taken.refused_in_a_row == 1, 'the refusal')
    usable_s = taken._last_usable_s
    ask_and_refresh(robot, budgets, max_age=MINUTE)
    assert taken.refused_in_a_row == 1 and taken._last_usable_s == usable_s


def test_the_subscription_follows_a_camera_that_changes_its_qos_and_misses_no_picture(robot):
    budgets, topic = robot.listen(RefreshBudget, BUDGET), f'{robot.namespace}/camera/image_raw'
    for reliability in (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE):
        camera = robot.camera(qos=QoSProfile(depth=1, reliability=reliability))
        robot.until(
            lambda: (
                [info.qos_profile.reliability for info in robot.node.get_subscriptions_info_by_topic(topic)]
                == [reliability]
            ),
            f'a {reliability.name} subscription',
        )
        show(robot, camera, budgets)
        robot.node.destroy_publisher(camera)
    assert [budget.frames_received for budget in budgets] == [1, 2, 3]


def test_qos_overrides_are_honoured(start, namespace):
    topic = f'{namespace}/camera/image_raw'
    override = f'qos_overrides.{topic}.subscription'
    robot = start(**{f'{override}.reliability': 'best_effort', f'{override}.depth': 7})
    show(robot, robot.camera(qos=QoSProfile(depth=1)), robot.listen(RefreshBudget, BUDGET))
    profile = robot.node.get_subscriptions_info_by_topic(topic)[0].qos_profile
    assert (profile.reliability, profile.depth) in [(ReliabilityPolicy.BEST_EFFORT, depth) for depth in (7, 0)]


def test_compressed_pictures_are_read(start):
    robot = start(image_transport='compressed')
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera('camera/image_raw/compressed', CompressedImage)
    data = cv2.imencode('.jpg', np.full((48, 64, 3), 99, np.uint8))[1].tobytes()
    message = CompressedImage(format='bgr8; jpeg compressed bgr8', data=array.array('B', data))
    message.header.stamp, message.header.frame_id = robot.node.get_clock().now().to_msg(), 'lens'
    camera.publish(message)
    robot.until(lambda: budgets, 'a refresh budget')
    assert robot.ask().status == Answer.OK


def test_pictures_without_stamps_count_as_taken_when_they_arrive(robot):
    before_ns = robot.now_ns()
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET), stamp_ns=0)
    answer = robot.ask()
    assert answer.status == Answer.OK and 0 < seconds_of(answer.image_age) < since_s(robot, before_ns)


def test_the_overlay_is_published_while_somebody_looks(robot):
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    show(robot, camera, budgets)
    overlays = robot.listen(Image, 'vlm_reuse_node/overlay/camera')
    stamp = show(robot, camera, budgets, seed=3)
    overlay = robot.until(lambda: overlays, 'an overlay')[0]
    assert (overlay.header.stamp, overlay.header.frame_id) == (stamp, 'lens')
    assert (overlay.height, overlay.width, overlay.encoding) == (48 + BAR_HEIGHT, 64, 'rgb8')


def test_frames_carry_the_time_at_which_they_arrived(ros, namespace):
    node, frames = Node('taker', namespace=namespace, context=ros), []
    camera = CameraInput(node, 'camera', Config(), lambda frame: frames.append(frame) or True, None)
    before_ns = node.get_clock().now().nanoseconds
    camera._on_message(picture_message(stamp_ns=7))
    assert frames[0].stamp_ns == 7 and before_ns <= frames[0].received_ns <= node.get_clock().now().nanoseconds
    node.destroy_node()


def test_a_full_size_picture_takes_its_callback_less_than_5_ms(ros, namespace):
    """Of processor time: the executor's thread has everything else to do as well."""
    node, spent = Node('taker', namespace=namespace, context=ros), []
    camera = CameraInput(node, 'camera', Config(), lambda frame: True, None)
    for seed in range(30):
        message = picture_message(seed, size=(480, 640))
        started = time.thread_time()
        camera._on_message(message)
        spent.append(time.thread_time() - started)
    node.destroy_node()
    assert np.median(spent) < 0.005 and camera.received == len(spent)


def test_reset_forgets_the_picture(robot):
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    show(robot, camera, budgets)
    assert robot.reset().success
    assert robot.ask().status == Answer.NO_IMAGE
    show(robot, camera, budgets)
    answer, refresh = ask_and_refresh(robot, budgets)
    assert answer.status == Answer.OK and refresh.level == answer.level == FULL


def test_each_camera_has_its_own_picture(start):
    robot = start(cameras=['front', 'rear'])
    budgets = robot.listen(RefreshBudget, BUDGET)
    show(robot, robot.camera('front/image_raw'), budgets, frame_id='front_lens')
    assert robot.ask().header.frame_id == 'front_lens'
    assert robot.ask(camera='rear').status == Answer.NO_IMAGE
    show(robot, robot.camera('rear/image_raw'), budgets, frame_id='rear_lens')
    assert robot.ask(camera='rear').header.frame_id == 'rear_lens'
    assert robot.ask(camera='front').header.frame_id == 'front_lens'


def test_pictures_are_taken_while_many_questions_wait(start, namespace):
    robot = start(queue_size=64, **roomy(namespace))
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera(qos=QoSProfile(depth=50))
    show(robot, camera, budgets)
    asked = [
        robot.call(AskScene, 'vlm_reuse_node/ask', AskScene.Request(question='what is it ?', max_tokens=8))
        for _ in range(20)
    ]
    for seed in range(10):
        camera.publish(picture_message(seed, robot.now_ns()))
    robot.until(lambda: all(future.done() for future in asked), 'every answer')
    assert {future.result().answer.status for future in asked} == {Answer.OK}
    show(robot, camera, budgets)
    robot.until(lambda: budgets[-1].frames_received == 12, 'the last picture')


def test_more_questions_than_may_wait_are_answered_busy(start, brake):
    robot = start(queue_size=1)
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    brake.hold()
    asked = [robot.call(AskScene, 'vlm_reuse_node/ask', AskScene.Request(question='what is it ?'))]
    assert brake.held.wait(PATIENCE_S)
    asked += [robot.call(AskScene, 'vlm_reuse_node/ask', AskScene.Request(question='what is it ?')) for _ in range(9)]
    robot.until(lambda: sum(future.done() for future in asked) == 8, 'the answers of those that may not wait')
    assert [future.result().answer.status for future in asked if future.done()] == [Answer.BUSY] * 8
    brake.go_on.set()
    assert [robot.wait(future, 'an answer').answer.status for future in asked[:2]] == [Answer.OK] * 2


def test_diagnostics_come_once_a_second_with_reason_and_values(robot):
    diagnostics = robot.diagnostics()
    statuses = robot.until(lambda: diagnostics(), 'diagnostics')
    assert set(statuses) == {'life cycle', 'model', 'camera camera', 'refresh budget', 'drift audit', 'memory'}
    assert statuses['model'].level == DiagnosticStatus.OK
    assert statuses['camera camera'].level == DiagnosticStatus.WARN
    assert 'Nobody publishes' in statuses['camera camera'].message
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    status = robot.until(lambda: next((s for s in [diagnostics()['camera camera']] if not s.level[0]), None), 'OK')
    assert {'rate', 'image age', 'pictures dropped', 'pictures refused'} <= {pair.key for pair in status.values}


@pytest.mark.parametrize(
    'name, value, reason',
    [
        ('max_tokens', 0, '4096'),
        ('max_age_s', -1.0, '86400'),
        ('image_transport', 'compressed', 'lifecycle set'),
        ('no_such', 1, 'undeclared'),
    ],
)
def test_a_wrong_parameter_change_is_refused_with_the_reason(shared, name, value, reason):
    result = set_parameter(shared, name, value)
    assert not result.successful and reason in result.reason


def test_a_live_parameter_changes_the_next_answer(robot):
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    assert set_parameter(robot, 'max_tokens', 2).successful
    assert robot.ask().tokens_generated == 2
    assert set_parameter(robot, 'max_tokens', 3).successful
    assert robot.ask().tokens_generated == 3


@pytest.mark.parametrize(
    'parameters, named',
    [
        ({'max_tokens': 0}, 'expected 1 to 4096'),
        ({'cameras': ['front camera']}, 'front camera'),
        ({'cameras': ['/front']}, 'cannot begin a topic name'),
        ({'cameras': ['front', '']}, 'cameras'),
        ({'max_tokenz': 3}, "no parameter 'max_tokenz'"),
        ({'image_transport': 'theora'}, 'raw, compressed, ffmpeg'),
        ({'cameras': ['a' * 228]}, 'short enough'),
        ({'qos_overrides.nonsense': 3}, 'overrides nothing'),
        ({'qos_overrides./camera/image_raw.subscription.colour': 3}, 'overrides nothing'),
        ({'qos_overrides./camera/image_raw.subscription.reliability': 'maybe'}, 'maybe'),
        ({'qos_overrides./camera/image_raw.subscription.depth': 'abc'}, 'camera/image_raw.*depth'),
        ({'qos_overrides./vlm_reuse_node/refresh_budget.publisher.reliability': 'maybe'}, 'refresh_budget.*maybe'),
        ({'qos_overrides./vlm_reuse_node/overlay/camera.publisher.depth': -3}, 'overlay'),
    ],
)
def test_a_wrong_start_parameter_is_refused_with_the_reason(ros, model_dir, parameters, named):
    with pytest.raises(ConfigError, match=named):
        scene_node(ros, '', **{'model': str(model_dir)} | parameters).__enter__()


def test_a_qos_override_waits_for_the_camera_that_joins(start, namespace):
    topic = f'{namespace}/rear/image_raw'
    robot = start(**{f'qos_overrides.{topic}.subscription.reliability': 'best_effort'})
    assert set_parameter(robot, 'cameras', ['camera', 'rear']).successful
    robot.camera('rear/image_raw')
    (info,) = robot.node.get_subscriptions_info_by_topic(topic)
    assert info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


def test_a_whole_number_is_taken_for_a_float_parameter(ros):
    from vlm_reuse_node.ros.node import SceneNode

    node = SceneNode(context=ros, parameter_overrides=[Parameter('max_age_s', value=3)])
    assert node.config.max_age_s == 3.0
    node.destroy_node()


@pytest.mark.parametrize('content', [None, '{}', '{"model_type": "llama"}', 'not json'])
def test_a_model_that_does_not_load_is_one_sentence(ros, tmp_path, content):
    folder = tmp_path / 'model'
    if content is not None:
        folder.mkdir()
        (folder / 'config.json').write_text(content)
    with pytest.raises(ModelError) as caught:
        scene_node(ros, '', model=str(folder)).__enter__()
    assert str(folder) in str(caught.value) and '\n' not in str(caught.value)


def test_a_publisher_with_incompatible_qos_is_named(start, namespace):
    robot = start(**{f'qos_overrides.{namespace}/camera/image_raw.subscription.reliability': 'reliable'})
    diagnostics = robot.diagnostics()
    robot.node.create_publisher(
        Image, 'camera/image_raw', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    )
    robot.until(lambda: 'RELIABILITY' in diagnostics().get('camera camera', DiagnosticStatus()).message, 'the reason')
    assert 'RELIABILITY' in robot.ask().message


def test_simulated_time_that_jumps_back_forgets_the_pictures(start):
    robot = start(use_sim_time=True)
    clock = robot.node.create_publisher(Clock, '/clock', QoSProfile(depth=10))
    robot.until(clock.get_subscription_count, 'a subscription of /clock')
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    show(robot, camera, budgets, stamp_ns=100_000_000_000)
    clock.publish(Clock(clock=Time(sec=101)))
    answer = robot.until(
        lambda: next((a for a in [robot.ask(max_age=Duration(sec=5))] if seconds_of(a.image_age) > 0), None),
        'the clock',
    )
    assert answer.status == Answer.OK and seconds_of(answer.image_age) == pytest.approx(1.0)
    clock.publish(Clock(clock=Time(sec=10)))
    robot.until(lambda: robot.ask(max_age=Duration(sec=500)).status == Answer.NO_IMAGE, 'the reset')
    show(robot, camera, budgets, stamp_ns=10_000_000_000)
    answer = robot.ask(max_age=Duration(sec=5))
    assert answer.status == Answer.OK and answer.level == FULL


def test_a_looping_bag_without_simulated_time_starts_anew(robot):
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    now = robot.now_ns()
    for stamp_ns in (now, now - 30_000_000_000):
        show(robot, camera, budgets, seed=1, stamp_ns=stamp_ns)
        assert ask_and_refresh(robot, budgets)[0].status == Answer.OK
    assert levels(budgets) == [REUSE, FULL, REUSE, FULL]


def test_an_answer_wakes_the_executor(ros):
    """A future that another thread completes must not wait for the next picture or timer; here there is none."""
    from concurrent.futures import Future
    from threading import Timer

    from rclpy.executors import SingleThreadedExecutor

    from vlm_reuse_node.ros.ask_server import awaitable
    from vlm_reuse_node.session.answer import Answer as Record
    from vlm_reuse_node.session.answer import Status

    executor, asked = SingleThreadedExecutor(context=ros), Future()

    async def wait():
        return await awaitable(asked, executor)

    task = executor.create_task(wait)
    executor.spin_once(timeout_sec=0)  # as far as the answer
    Timer(0.2, lambda: asked.set_result(Record(Status.OK))).start()  # when the executor sleeps
    executor.spin_until_future_complete(task, timeout_sec=PATIENCE_S)
    executor.shutdown()
    assert task.done() and task.result().status is Status.OK
