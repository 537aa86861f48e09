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

"""The action AskScene over real DDS: text as it grows, cancelling, and the same answer as the service's."""

import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from patience import PATIENCE_S
from rclpy._rclpy_pybind11 import InvalidHandle
from rclpy.action import ActionClient
from ros_harness import BUDGET, Robot, scene_node, show
from vlm_reuse_interfaces.action import AskScene
from vlm_reuse_interfaces.msg import Answer, RefreshBudget

from vlm_reuse_node.errors import ConfigError
from vlm_reuse_node.ros import ask_server
from vlm_reuse_node.session import turn


class Planner:
    """Sends goals to the node of a robot that has seen a picture."""

    def __init__(self, robot):
        self.robot, self.feedback = robot, []
        self.client = ActionClient(robot.node, AskScene, 'vlm_reuse_node/ask_scene')
        robot.until(self.client.server_is_ready, 'the action')
        show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))

    def send(self, question='what is the colour ?', **fields):
        """The handle of an accepted goal."""
        sent = self.client.send_goal_async(
            AskScene.Goal(question=question, **fields),
            feedback_callback=lambda message: self.feedback.append(message.feedback),
        )
        handle = self.robot.wait(sent, 'the goal response')
        assert handle.accepted
        return handle

    def result(self, handle):
        """Status and answer."""
        got = self.robot.wait(handle.get_result_async(), 'the result')
        return got.status, got.result.answer


@pytest.fixture
def planner(robot):
    return Planner(robot)


def test_the_text_grows_token_by_token_to_the_services_answer(planner):
    planner.result(planner.send(question='what is it ?', max_tokens=6))  # it pays for the picture
    planner.robot.until(lambda: planner.feedback and planner.feedback[-1].tokens_generated == 6, 'the last feedback')
    assert [feedback.stage for feedback in planner.feedback][:4] == ['queue', 'refresh', 'prefill', 'decode']
    planner.feedback.clear()
    status, answer = planner.result(planner.send(max_tokens=6))
    assert status == GoalStatus.STATUS_SUCCEEDED and answer.status == Answer.OK and not answer.remembered
    planner.robot.until(lambda: planner.feedback and planner.feedback[-1].tokens_generated == 6, 'the last feedback')
    stages = [feedback.stage for feedback in planner.feedback]
    assert stages == ['queue', 'prefill', 'decode'] + ['decode'] * 6
    assert [feedback.tokens_generated for feedback in planner.feedback[2:]] == [0, 1, 2, 3, 4, 5, 6]
    assert planner.feedback[-1].text == answer.text
    assert planner.robot.ask_cold(max_tokens=6).token_ids == answer.token_ids


def test_a_remembered_text_comes_at_once(planner):
    given = planner.robot.ask(max_tokens=6)
    status, answer = planner.result(planner.send(max_tokens=6))
    assert status == GoalStatus.STATUS_SUCCEEDED and answer.remembered and not given.remembered
    # A client drops the feedback of a goal whose end it has heard of; what it hears is the whole text.
    heard = {(feedback.stage, feedback.text, feedback.tokens_generated) for feedback in planner.feedback}
    assert heard <= {('queue', '', 0), ('decode', given.text, 0)}
    assert (answer.text, answer.token_ids, answer.header) == (given.text, given.token_ids, given.header)
    assert (answer.tokens_prefilled, answer.tokens_generated) == (0, 0) and answer.level == Answer.LEVEL_REUSE
    assert 0 < answer.tokens_reused < given.tokens_prefilled  # which paid for the picture, and for the question


def test_choices_and_errors_come_as_by_service(planner):
    status, answer = planner.result(planner.send(choices=['red', 'green']))
    assert status == GoalStatus.STATUS_SUCCEEDED and answer.text == ['red', 'green'][answer.choice_index]
    status, answer = planner.result(planner.send(question=''))
    assert status == GoalStatus.STATUS_ABORTED and answer.status == Answer.INVALID_REQUEST and 'empty' in answer.message
    status, answer = planner.result(planner.send(max_age=Duration(sec=-1)))
    assert status == GoalStatus.STATUS_ABORTED and answer.status == Answer.INVALID_REQUEST


def test_a_goal_is_cancelled_within_one_token_and_the_state_stays_exact(planner, brake):
    before = [planner.robot.ask(max_tokens=6) for _ in range(2)][-1]
    brake.hold()
    handle = planner.send(max_tokens=400)
    assert brake.held.wait(PATIENCE_S)
    response = planner.robot.wait(handle.cancel_goal_async(), 'the cancel response')
    assert len(response.goals_canceling) == 1
    passes = brake.passes
    brake.go_on.set()
    status, answer = planner.result(handle)
    assert status == GoalStatus.STATUS_CANCELED and answer.status == Answer.CANCELLED and not answer.text
    assert brake.passes == passes
    after = planner.robot.ask(max_tokens=7)
    assert after.token_ids[:6] == before.token_ids and after.tokens_reused == before.tokens_reused > 0


def test_a_goal_that_waits_is_cancelled_before_its_turn(planner, brake):
    brake.hold()
    first, second = planner.send(max_tokens=2), planner.send(max_tokens=2)
    assert brake.held.wait(PATIENCE_S)
    planner.robot.wait(second.cancel_goal_async(), 'the cancel response')
    brake.go_on.set()
    assert planner.result(second)[1].status == Answer.CANCELLED
    assert planner.result(first)[0] == GoalStatus.STATUS_SUCCEEDED


def test_a_full_queue_is_busy_at_once(start, brake):
    planner = Planner(start(queue_size=1))
    brake.hold()
    running = planner.send(max_tokens=2)
    assert brake.held.wait(PATIENCE_S)
    waiting = planner.send(max_tokens=2)
    status, answer = planner.result(planner.send(max_tokens=2))  # while the model stands still
    assert status == GoalStatus.STATUS_ABORTED and answer.status == Answer.BUSY
    assert planner.robot.ask().status == Answer.BUSY
    brake.go_on.set()
    assert {planner.result(handle)[1].status for handle in (running, waiting)} == {Answer.OK}


def test_a_deadline_drops_the_answer_and_the_state_stays_exact(planner, brake):
    before = planner.robot.ask(max_tokens=6)
    brake.hold()
    handle = planner.send(max_tokens=400, timeout=Duration(sec=1000))
    assert brake.held.wait(PATIENCE_S)
    late_s = time.perf_counter() + 1000.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turn, 'time', SimpleNamespace(perf_counter=lambda: late_s))
        brake.go_on.set()
        status, answer = planner.result(handle)
    assert status == GoalStatus.STATUS_ABORTED and answer.status == Answer.TIMEOUT
    assert planner.robot.ask(max_tokens=7).token_ids[:6] == before.token_ids


def test_a_json_schema_of_a_model_that_cannot_is_refused(planner):
    status, answer = planner.result(planner.send(json_schema='{"type": "object"}'))
    assert status == GoalStatus.STATUS_ABORTED and answer.status == Answer.INVALID_REQUEST and 'JSON' in answer.message


def test_a_planner_that_goes_away_in_the_middle_does_no_harm(planner, brake, namespace):
    """Its node and its participant are gone while the model still writes its answer."""
    from ros_harness import rclpy

    brake.hold()
    context = rclpy.Context()
    rclpy.init(context=context)
    passenger = Robot(context, namespace)
    client = ActionClient(passenger.node, AskScene, 'vlm_reuse_node/ask_scene')
    passenger.until(client.server_is_ready, 'the action')
    passenger.wait(client.send_goal_async(AskScene.Goal(question='what is it ?', max_tokens=50)), 'the goal response')
    assert brake.held.wait(PATIENCE_S)
    context.try_shutdown()
    brake.go_on.set()
    assert planner.robot.ask(max_tokens=4).status == Answer.OK


@pytest.mark.parametrize('wrong', [{}, {'qos_overrides./vlm_reuse_node/overlay/camera.publisher.depth': -3}])
def test_a_node_that_ends_frees_its_action_while_its_clock_is_there(ros, model_dir, monkeypatch, wrong):
    created, create = [], ask_server.ActionServer
    monkeypatch.setattr(ask_server, 'ActionServer', lambda *a, **k: created.append(create(*a, **k)) or created[-1])
    with nullcontext() if not wrong else pytest.raises(ConfigError), scene_node(ros, '', model=str(model_dir), **wrong):
        pass
    (action,) = created
    with pytest.raises(InvalidHandle), action._handle:
        pass
