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

"""The node's life cycle over real DDS, and what may change while it runs."""

import threading

import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import GetState
from patience import PATIENCE_S
from ros_harness import BUDGET, FULL, REUSE, levels, set_parameter, show, transition
from tiny_model import write_tiny_model
from vlm_reuse_interfaces.msg import Answer, RefreshBudget
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.errors import ModelError

CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE


@pytest.fixture
def unconfigured(start):
    return start(autostart=False)


def change(robot, *transitions):
    """Take transitions as a lifecycle manager does; returns whether each succeeded."""
    return [robot.wait(transition(robot, number), 'the transition').success for number in transitions]


def state(robot):
    got = robot.wait(robot.call(GetState, 'vlm_reuse_node/get_state', GetState.Request()), 'the state')
    return got.current_state.id


def test_configure_loads_activate_subscribes_deactivate_keeps_and_cleanup_frees(unconfigured):
    robot = unconfigured
    assert state(robot) == State.PRIMARY_STATE_UNCONFIGURED and robot.scene._worker is None
    assert change(robot, CONFIGURE) == [True] and state(robot) == State.PRIMARY_STATE_INACTIVE
    assert robot.node.count_subscribers('camera/image_raw') == 0 and robot.ask().status == Answer.INACTIVE

    assert change(robot, ACTIVATE) == [True]
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    show(robot, camera, budgets, seed=1)
    before = robot.ask(max_tokens=4)
    assert before.status == Answer.OK

    assert change(robot, DEACTIVATE) == [True]
    robot.until(lambda: robot.node.count_subscribers(f'{robot.namespace}/camera/image_raw') == 0, 'the end of it')
    refused = robot.ask()
    assert refused.status == Answer.INACTIVE and 'activate' in refused.message and not refused.text

    assert change(robot, ACTIVATE) == [True]
    robot.until(camera.get_subscription_count, 'the subscription')
    assert robot.ask(max_tokens=4).token_ids == before.token_ids  # from the state that was kept
    show(robot, camera, budgets, seed=1)
    assert levels(budgets) == [REUSE, FULL, REUSE] and budgets[-1].frames_received == 2
    assert budgets[-1].visual_tokens_stale == 0

    assert change(robot, DEACTIVATE, CLEANUP) == [True, True]
    assert state(robot) == State.PRIMARY_STATE_UNCONFIGURED and robot.scene._worker is None
    refused = robot.ask()
    assert refused.status == Answer.INACTIVE and 'configure' in refused.message


def test_after_a_cleanup_another_model_can_be_configured(unconfigured, tmp_path):
    robot = unconfigured
    assert change(robot, CONFIGURE) == [True]
    refused = set_parameter(robot, 'model', 'tabletop')
    assert not refused.successful and 'cleanup' in refused.reason
    assert change(robot, CLEANUP) == [True]
    assert set_parameter(robot, 'model', str(write_tiny_model(tmp_path / 'other', seed=3))).successful
    assert change(robot, CONFIGURE, ACTIVATE) == [True, True]
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    assert robot.ask().model == 'other'


def test_a_model_that_does_not_load_leaves_it_unconfigured_and_says_why(unconfigured, model_dir):
    robot, diagnostics = unconfigured, unconfigured.diagnostics()
    waits = robot.until(lambda: diagnostics().get('life cycle'), 'diagnostics')
    assert waits.level == DiagnosticStatus.WARN and 'configure' in waits.message
    assert set_parameter(robot, 'model', '/nowhere/at/all').successful
    assert change(robot, CONFIGURE) == [False] and state(robot) == State.PRIMARY_STATE_UNCONFIGURED
    robot.until(
        lambda: (
            diagnostics()['life cycle'].level == DiagnosticStatus.ERROR
            and '/nowhere/at/all' in diagnostics()['life cycle'].message
        ),
        'the reason',
    )
    assert set_parameter(robot, 'model', str(model_dir)).successful
    assert change(robot, CONFIGURE, ACTIVATE) == [True, True]
    robot.until(lambda: diagnostics()['life cycle'].level == DiagnosticStatus.OK, 'all is well')
    assert change(robot, DEACTIVATE) == [True]
    message = robot.until(
        lambda: diagnostics()['life cycle'].level == DiagnosticStatus.WARN and diagnostics()['life cycle'].message,
        'the diagnostics of an inactive node',
    )
    assert '/nowhere' not in message and 'activate' in message


def test_while_it_loads_the_diagnostics_say_so(unconfigured, monkeypatch):
    import mlx_vlm

    load, let = mlx_vlm.load, threading.Event()
    monkeypatch.setattr(mlx_vlm, 'load', lambda *args, **kwargs: let.wait(PATIENCE_S) and load(*args, **kwargs))
    diagnostics = unconfigured.listen(DiagnosticArray, '/diagnostics')
    configured = transition(unconfigured, CONFIGURE)

    def told():
        return [
            status
            for message in diagnostics
            for status in message.status
            if 'configuring (loading weights: 0.0 of' in status.message
        ]

    unconfigured.until(lambda: len(told()) >= 2, 'what it is busy with, more than once')
    let.set()
    assert unconfigured.wait(configured, 'the model').success


def test_after_a_shutdown_everything_says_that_only_a_new_process_helps(robot):
    diagnostics = robot.diagnostics()
    assert change(robot, Transition.TRANSITION_ACTIVE_SHUTDOWN) == [True]
    assert state(robot) == State.PRIMARY_STATE_FINALIZED and robot.scene._worker is None
    refused = robot.ask()
    assert refused.status == Answer.INACTIVE and 'process again' in refused.message
    robot.until(lambda: diagnostics() and 'process again' in diagnostics()['life cycle'].message, 'the remedy')


def test_a_fault_while_loading_is_logged_and_leaves_nothing(unconfigured, monkeypatch):
    from vlm_reuse_node.serving import worker

    monkeypatch.setattr(worker.ModelWorker, 'start', lambda *_: 1 / 0)
    assert change(unconfigured, CONFIGURE) == [False]
    assert state(unconfigured) == State.PRIMARY_STATE_UNCONFIGURED
    monkeypatch.undo()
    assert change(unconfigured, CONFIGURE, ACTIVATE) == [True, True]


def test_a_wrong_qos_override_can_be_seen_at_activation(ros, model_dir):
    from ros_harness import scene_node

    from vlm_reuse_node.errors import ConfigError

    with pytest.raises(ConfigError, match='maybe'):
        scene_node(
            ros, '', model=str(model_dir), **{'qos_overrides./camera/image_raw.subscription.reliability': 'maybe'}
        ).__enter__()


def test_a_configure_that_fails_after_the_model_was_loaded_frees_it(start, namespace):
    override = f'qos_overrides.{namespace}/vlm_reuse_node/refresh_budget.publisher.reliability'
    robot = start(autostart=False, **{override: 'maybe'})
    assert change(robot, CONFIGURE) == [False] and robot.scene._worker is None
    assert state(robot) == State.PRIMARY_STATE_UNCONFIGURED


def test_a_camera_that_cannot_join_says_why_and_the_others_go_on(start, namespace):
    robot = start(**{f'qos_overrides.{namespace}/rear/image_raw.subscription.reliability': 'maybe'})
    diagnostics = robot.diagnostics()
    assert set_parameter(robot, 'cameras', ['rear', 'left', 'camera']).successful
    robot.until(lambda: 'maybe' in diagnostics().get('camera rear', DiagnosticStatus()).message, 'the reason')
    assert 'maybe' in robot.ask(camera='rear').message
    show(robot, robot.camera('left/image_raw'), robot.listen(RefreshBudget, BUDGET))
    assert robot.ask(camera='left').status == Answer.OK


def test_open_questions_are_answered_at_a_cleanup(robot, brake):
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    brake.hold()
    asked = [robot.call(AskScene, 'vlm_reuse_node/ask', AskScene.Request(question='what is it ?')) for _ in range(3)]
    assert brake.held.wait(PATIENCE_S)
    worker = robot.scene._worker
    robot.until(lambda: sum(worker.stats().waiting.values()) == 2, 'the others to wait')
    assert change(robot, DEACTIVATE) == [True]
    cleaned = transition(robot, CLEANUP)
    robot.until(lambda: not worker._inbox.is_open, 'the clean-up to begin')
    brake.go_on.set()
    assert robot.wait(cleaned, 'the clean-up').success
    assert {robot.wait(each, 'an answer').answer.status for each in asked} == {Answer.CANCELLED}


def test_a_clean_up_frees_the_model(unconfigured):
    """What MLX holds after a cleanup is what it held before."""
    import mlx.core as mx

    held = []
    for _ in range(3):
        assert change(unconfigured, CONFIGURE, CLEANUP) == [True, True]
        held.append(mx.get_active_memory() + mx.get_cache_memory())
    assert held[2] <= held[1] + 100_000, held


def test_a_camera_joins_and_leaves_while_the_other_goes_on(start):
    robot = start(cameras=['front'])
    budgets, diagnostics = robot.listen(RefreshBudget, BUDGET), robot.diagnostics()
    front = robot.camera('front/image_raw')
    show(robot, front, budgets, seed=1, frame_id='front_lens')
    assert robot.ask(camera='front').status == Answer.OK
    assert robot.ask(camera='rear').status == Answer.INVALID_REQUEST

    assert set_parameter(robot, 'cameras', ['front', 'rear']).successful
    rear = robot.camera('rear/image_raw')
    show(robot, rear, budgets, seed=2, frame_id='rear_lens')
    assert robot.ask(camera='rear').header.frame_id == 'rear_lens'
    show(robot, front, budgets, seed=1, frame_id='front_lens')
    look = next(budget for budget in reversed(budgets) if budget.camera == 'front' and budget.level == REUSE)
    assert look.visual_tokens_stale == 0 and robot.ask(camera='front').level == REUSE  # its state was not touched
    robot.until(lambda: 'camera rear' in diagnostics(), 'its diagnostics')

    assert set_parameter(robot, 'cameras', ['rear']).successful
    robot.until(lambda: front.get_subscription_count() == 0, 'the end of the subscription')
    gone = robot.ask(camera='front')
    assert gone.status == Answer.INVALID_REQUEST and 'rear' in gone.message
    assert robot.ask().header.frame_id == 'rear_lens'
    robot.until(lambda: 'camera front' not in diagnostics(), 'no more diagnostics of it')
    robot.until(lambda: not robot.node.count_publishers('vlm_reuse_node/overlay/front'), 'the end of its overlay')
    robot.until(lambda: set(robot.scene._worker.stats().sessions) == {'rear'}, 'its state to be given up')


@pytest.mark.parametrize(
    'cameras, reason',
    [
        (['a', ''], 'list of names'),
        (['a', 'a'], 'different'),
        (['/a b'], 'topic name'),
        (['/a'], 'topic name'),
        (['a' * 228], 'short enough'),
    ],
)
def test_cameras_that_cannot_be_are_refused(robot, cameras, reason):
    result = set_parameter(robot, 'cameras', cameras)
    assert not result.successful and reason in result.reason
    assert robot.scene.config.cameras == ('camera',)


def test_start_raises_what_made_it_fail(ros, namespace):
    from rclpy.parameter import Parameter

    from vlm_reuse_node.ros.node import SceneNode

    node = SceneNode(context=ros, namespace=namespace, parameter_overrides=[Parameter('model', value='/nowhere')])
    with pytest.raises(ModelError, match='/nowhere'):
        node.start()
    node.close()
