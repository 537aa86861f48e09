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

"""What goes wrong on a robot, each over real ROS 2: the node stays up, says what it is, then answers right again."""

import array
import signal
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
from diagnostic_msgs.msg import DiagnosticStatus
from patience import PATIENCE_S
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_harness import (
    BUDGET,
    FRAME,
    FULL,
    MINUTE,
    REUSE,
    NodeProcess,
    Robot,
    graph,
    levels,
    picture_message,
    set_parameter,
    show,
)
from vlm_reuse_interfaces.msg import Answer, RefreshBudget
from vlm_reuse_interfaces.srv import AskScene

RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)


def same_as_cold(robot, max_tokens=5):
    """A warm answer of now, after checking that it is the cold one."""
    request = {'max_tokens': max_tokens, 'max_age': MINUTE}
    warm, cold = robot.ask(**request), robot.ask_cold(**request)
    assert warm.status == cold.status == Answer.OK and warm.token_ids == cold.token_ids, (warm.message, cold.message)
    return warm


def test_a_camera_stops_and_returns(robot):
    budgets, diagnostics, camera = robot.listen(RefreshBudget, BUDGET), robot.diagnostics(), robot.camera()
    assert set_parameter(robot, 'max_age_s', 0.5).successful
    show(robot, camera, budgets, seed=1)
    robot.node.destroy_publisher(camera)

    def told_why():  # a picture gets old before its camera is silent: one counts from its stamp, the other its arrival
        answer = robot.ask()
        return answer.status == Answer.STALE and ('publisher is gone' in answer.message or 'silent' in answer.message)

    robot.until(told_why, 'STALE with the reason')
    robot.until(
        lambda: diagnostics().get('camera camera') and diagnostics()['camera camera'].level == DiagnosticStatus.ERROR,
        'an error of the camera',
    )
    show(robot, robot.camera(), budgets, seed=2)
    same_as_cold(robot)
    assert same_as_cold(robot, max_tokens=6).tokens_reused > 0


def test_the_resolution_changes(robot):
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    for size in ((48, 64), (96, 64), (48, 64)):
        show(robot, camera, budgets, size=size)
        same_as_cold(robot)
    robot.until(lambda: len(budgets) == 6, 'the messages of three looks and three refreshes')
    assert levels(budgets) == [REUSE, FULL] * 3 and all('size changed' in each.reason for each in budgets[2:])


@pytest.mark.parametrize(
    'first, then',
    [
        (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT),
        (ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE),
    ],
)
def test_a_publisher_restarts_with_other_qos(robot, first, then):
    budgets = robot.listen(RefreshBudget, BUDGET)
    for seed, reliability in enumerate((first, then)):
        camera, stamps = robot.camera(qos=QoSProfile(depth=1, reliability=reliability)), []

        def looked_at(seed=seed, camera=camera, stamps=stamps):  # until the subscription has followed
            message = picture_message(seed, robot.now_ns())
            stamps.append(message.header.stamp)
            camera.publish(message)
            return any(budget.level == REUSE and budget.header.stamp in stamps for budget in budgets)

        robot.until(looked_at, f'a picture of a {reliability.name} camera')
        assert robot.ask(max_age=MINUTE).level == (FULL if seed == 0 else FRAME)
        same_as_cold(robot)
        robot.node.destroy_publisher(camera)


def test_corrupted_pictures_come_in_between(start, namespace):
    robot = start(**{f'qos_overrides.{namespace}/camera/image_raw.subscription.depth': 50})
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera(qos=RELIABLE)
    show(robot, camera, budgets, seed=1)
    before = same_as_cold(robot)
    for fields in ({'data': array.array('B', b'\0' * 7)}, {'encoding': 'martian'}, {'step': 1}, {'height': 0}):
        message = picture_message(2, robot.now_ns())
        for name, value in fields.items():
            setattr(message, name, value)
        camera.publish(message)
    show(robot, camera, budgets, seed=1)
    look = next(budget for budget in reversed(budgets) if budget.level == REUSE)
    assert look.visual_tokens_stale == 0 and look.frames_refused == 4
    assert same_as_cold(robot, max_tokens=6).token_ids[:5] == before.token_ids


def test_two_hundred_questions_at_once_are_all_answered(start):
    robot = start(queue_size=20)
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    asked = [
        robot.call(AskScene, 'vlm_reuse_node/ask', AskScene.Request(question='what is it ?', max_tokens=3))
        for _ in range(200)
    ]
    robot.until(lambda: all(future.done() for future in asked), '200 answers')
    answers = [future.result().answer for future in asked]
    ok = [answer for answer in answers if answer.status == Answer.OK]
    assert {answer.status for answer in answers} <= {Answer.OK, Answer.BUSY} and len(ok) >= 20
    assert len({tuple(answer.token_ids) for answer in ok}) == 1
    assert [answer.remembered for answer in ok].count(False) == 1
    same_as_cold(robot)


def test_the_model_raises_in_the_middle_of_an_answer(robot, brake):
    budgets, diagnostics, camera = robot.listen(RefreshBudget, BUDGET), robot.diagnostics(), robot.camera()
    show(robot, camera, budgets, seed=1)
    before = same_as_cold(robot)
    brake.hold()
    asked = robot.call(AskScene, 'vlm_reuse_node/ask', AskScene.Request(question='what is it ?'))
    assert brake.held.wait(PATIENCE_S)
    brake.failing = True
    brake.go_on.set()
    failed = robot.wait(asked, 'the answer').answer
    assert failed.status == Answer.MODEL_ERROR and 'the device is gone' in failed.message and not failed.text
    robot.until(lambda: diagnostics() and diagnostics()['model'].level == DiagnosticStatus.ERROR, 'its error')
    brake.failing = False
    assert same_as_cold(robot).token_ids == before.token_ids  # its state was computed again
    show(robot, camera, budgets, seed=2)
    same_as_cold(robot)
    robot.until(lambda: diagnostics()['model'].level == DiagnosticStatus.OK, 'all is well')


def test_out_of_cache_budget_the_history_shrinks_and_it_goes_on(start):
    robot = start(history_frames=8, keyframe_interval_s=0.0, max_cache_mb=4, upkeep_share=1000.0)
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    for seed in range(14):  # of large pictures, each of which takes most of a megabyte
        show(robot, camera, budgets, seed=seed, size=(480, 640))
        assert robot.ask(max_tokens=2).status == Answer.OK
    same_as_cold(robot)
    session = robot.scene._worker.stats().sessions['camera']
    assert 1 <= session.frames <= 4 and session.held_bytes <= 4e6


CLIENT = textwrap.dedent("""
    import rclpy
    from rclpy.action import ActionClient
    from builtin_interfaces.msg import Duration
    from vlm_reuse_interfaces.action import AskScene
    rclpy.init()
    node = rclpy.create_node('doomed', namespace='{namespace}')
    client = ActionClient(node, AskScene, 'vlm_reuse_node/ask_scene')
    client.wait_for_server()
    sent = client.send_goal_async(AskScene.Goal(question='what is it ?', max_tokens=200),
                                  lambda message: None)
    rclpy.spin_until_future_complete(node, sent)
    print('sent', flush=True)
    rclpy.spin(node)
""")


def test_a_client_dies_in_the_middle_of_an_action(robot, brake, namespace):
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    before = same_as_cold(robot)
    brake.hold()
    with subprocess.Popen(
        [sys.executable, '-c', CLIENT.format(namespace=namespace)], stdout=subprocess.PIPE, text=True
    ) as client:
        try:
            assert client.stdout.readline() == 'sent\n' and brake.held.wait(PATIENCE_S)
        finally:
            client.send_signal(signal.SIGKILL)
    brake.go_on.set()
    assert same_as_cold(robot, max_tokens=6).token_ids[:5] == before.token_ids


def test_a_killed_node_is_started_again_and_answers(model_dir):
    with graph(own_domain=True) as context:
        robot, answers = Robot(context, ''), []
        for _ in range(2):
            node = NodeProcess('-p', f'model:={model_dir}')
            try:
                node.wait_for_line('vlm_reuse_node: ready')
                camera, budgets = robot.camera(), robot.listen(RefreshBudget, BUDGET)

                def looked_at(camera=camera, budgets=budgets):
                    camera.publish(picture_message(5, robot.now_ns()))
                    return budgets

                robot.until(looked_at, 'a refresh budget')
                answers.append(same_as_cold(robot))
                robot.node.destroy_publisher(camera)
            finally:
                node.end(signal.SIGKILL)
        assert answers[0].token_ids == answers[1].token_ids
