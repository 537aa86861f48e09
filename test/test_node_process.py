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

"""The installed `node` program: how it starts, refuses to start, and ends."""

import ctypes
import platform
import signal
import sys
from pathlib import Path

import pytest
from conftest import PATIENT

pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
from lifecycle_msgs.srv import GetState
from rclpy.action import ActionClient
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_harness import NodeProcess, Robot, graph, picture_message
from vlm_reuse_interfaces.action import AskScene as AskSceneAction
from vlm_reuse_interfaces.msg import Answer, RefreshBudget
from vlm_reuse_interfaces.srv import AskScene


@pytest.fixture
def robot():
    with graph(own_domain=True) as context:
        yield Robot(context, '')


@pytest.fixture
def start(model_dir):
    """Start the program and wait until it serves; whatever happens it is ended."""
    running = []

    def start(*arguments):
        patient = (word for name, value in PATIENT.items() for word in ('-p', f'{name}:={value}'))
        running.append(NodeProcess('-p', f'model:={model_dir}', *patient, *arguments))
        running[-1].wait_for_line('Ready')
        return running[-1]

    yield start
    for node in running:
        if node.process.poll() is None:
            node.end(signal.SIGKILL)


def show(robot, topic='camera/image_raw', budget='vlm_reuse_node/refresh_budget'):
    """Publish pictures until the node has looked at one: two processes find each other when they do."""
    camera, budgets = robot.camera(topic), robot.listen(RefreshBudget, budget)

    def looked_at():
        camera.publish(picture_message(stamp_ns=robot.now_ns()))
        return budgets

    return robot.until(looked_at, 'a refresh budget')


@pytest.mark.parametrize('with_signal', [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_answers_the_open_questions_and_ends_cleanly(start, robot, with_signal):
    node = start('-p', 'queue_size:=1000')
    show(robot)
    action = ActionClient(robot.node, AskSceneAction, 'vlm_reuse_node/ask_scene')
    robot.until(action.server_is_ready, 'the action')
    assert robot.ask().status == Answer.OK  # the two know each other: nothing is lost on the way
    asked = [
        robot.call(AskScene, 'vlm_reuse_node/ask', AskScene.Request(question='what is it ?', max_tokens=64 + number))
        for number in range(300)  # all others, else the answer is remembered
    ]
    goal = robot.wait(action.send_goal_async(AskSceneAction.Goal(question='what is it ?')), 'the goal response')
    ended = goal.get_result_async()
    robot.wait(robot.call(GetState, 'vlm_reuse_node/get_state', GetState.Request()), 'the state')  # all are sent
    node.process.send_signal(with_signal)
    answers = {robot.wait(each, 'an answer').answer.status for each in asked}
    # INACTIVE: it takes one after the other, and had not come to it.
    assert Answer.CANCELLED in answers and answers <= {Answer.OK, Answer.CANCELLED, Answer.INACTIVE}
    assert robot.wait(ended, 'the result').result.answer.status in (Answer.CANCELLED, Answer.INACTIVE)
    exit_code, said = node.end()
    assert exit_code == 0, said
    assert 'Traceback' not in said and 'terminate' not in said


def test_it_says_once_that_it_is_ready_whatever_the_log_level(model_dir):
    node = NodeProcess('-p', f'model:={model_dir}', '--log-level', 'error')
    node.wait_for_line('vlm_reuse_node: ready')
    exit_code, said = node.end(signal.SIGINT)
    assert exit_code == 0 and said == 'vlm_reuse_node: ready\n'


@pytest.mark.skipif(sys.platform != 'linux', reason='tgkill is missing: a system call of Linux')
def test_a_signal_that_another_thread_receives_ends_it_too(start):
    """The system may give a signal of the process to any thread that does not block it."""
    node = start()
    pid = node.process.pid
    threads = sorted(int(each.name) for each in Path(f'/proc/{pid}/task').iterdir())
    _tgkill(pid, next(each for each in threads if each != pid and _takes_signals(pid, each)))
    assert node.end()[0] == 0


def _takes_signals(pid, thread):
    """Whether the thread is still there and does not block SIGINT."""
    try:
        lines = Path(f'/proc/{pid}/task/{thread}/status').read_text().splitlines()
    except FileNotFoundError:
        return False
    return not int(dict(line.split(':', 1) for line in lines)['SigBlk'], 16) >> signal.SIGINT - 1 & 1


def _tgkill(pid, thread):
    number = {'x86_64': 234, 'aarch64': 131}[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, pid, thread, signal.SIGINT) == 0


def test_debug_shows_each_step_from_the_picture_to_the_answer(start, robot):
    node = start('--log-level', 'debug')
    show(robot)
    assert robot.ask('is it red ?').status == Answer.OK
    code, said = node.end(signal.SIGINT)
    assert code == 0
    steps = (' s came', 'looked at picture', "question 'is it red ?' waits", "refresh '", 'answer OK')
    assert [step for step in steps if step not in said] == []
    assert said.index(steps[2]) < said.index('answer OK')


def test_a_camera_that_nobody_publishes_is_a_warning_in_the_log_and_the_node_stays_up(start, robot):
    """The installed node logs at several severities."""
    node = start()
    node.wait_for_line('Nobody publishes')
    show(robot)
    assert robot.ask('is it red ?').status == Answer.OK


def test_without_autostart_it_says_what_it_waits_for(model_dir):
    node = NodeProcess('-p', f'model:={model_dir}', '-p', 'autostart:=false')
    line = node.wait_for_line('autostart is false')
    assert 'ros2 lifecycle set /vlm_reuse_node configure' in line
    code, said = node.end(signal.SIGINT)
    assert code == 0 and 'Loading' not in said


def test_it_ends_cleanly_while_it_still_loads(model_dir):
    node = NodeProcess('-p', f'model:={model_dir}')
    node.wait_for_line('Loading')
    exit_code, said = node.end(signal.SIGTERM)
    assert exit_code == 0 and 'Traceback' not in said, said


@pytest.mark.parametrize(
    'arguments, exit_code, named',
    [
        (('-p', 'model:=/nowhere/at/all'), 1, '/nowhere/at/all'),
        (('-p', 'max_tokens:=0'), 2, 'max_tokens is 0; expected 1 to 4096'),
        (('-p', 'max_tokenz:=3'), 2, "no parameter 'max_tokenz'"),
        (('-p', 'use_sim_time:=maybe'), 2, 'use_sim_time'),
        (('--params-file', '/nowhere.yaml'), 2, '/nowhere.yaml'),
        (('--no-such-argument',), 2, '--no-such-argument'),
    ],
)
def test_it_refuses_to_start_in_one_sentence(arguments, exit_code, named):
    code, said = NodeProcess(*arguments).end()
    errors = [line for line in said.splitlines() if line.startswith('vlm_reuse_node: ')]
    assert code == exit_code and 'Traceback' not in said, said
    assert len(errors) == 1 and named in errors[0] and errors[0].endswith('.')


def test_full_size_pictures_at_30_hz_are_taken_while_questions_are_answered(start, robot):
    """No question is lost, and diagnostics tell what a picture's callback took."""
    start()
    diagnostics = robot.diagnostics()
    camera, asked, sent = robot.camera(qos=QoSProfile(depth=1)), [], []
    pictures = [picture_message(seed, size=(480, 640)) for seed in range(5)]

    def send():
        message = pictures[len(sent) % 5]
        message.header.stamp = robot.node.get_clock().now().to_msg()
        camera.publish(message)
        sent.append(message)
        if len(sent) % 15 == 0:
            asked.append(robot.call(AskScene, 'vlm_reuse_node/ask', AskScene.Request(question='what is it ?')))

    def many_received():
        values = {pair.key: pair.value for pair in diagnostics()['camera camera'].values} if diagnostics() else {}
        return int(values.get('pictures received', 0)) >= 30 and values

    timer = robot.node.create_timer(1 / 30, send)
    robot.until(lambda: len(sent) >= 60, '60 pictures')
    values = robot.until(many_received, 'diagnostics of 30 pictures')
    timer.cancel()
    assert {robot.wait(future, 'an answer').answer.status for future in asked} == {Answer.OK}
    assert values['callback median'].endswith(' ms') and values['pictures refused'] == '0'


def test_parameter_files_and_remapping_are_honoured(start, robot, tmp_path):
    (tmp_path / 'robot.yaml').write_text('/**:\n  ros__parameters:\n    cameras: [front]\n    max_tokens: 3\n')
    start('--params-file', str(tmp_path / 'robot.yaml'), '-r', '__ns:=/base', '-r', 'front/image_raw:=/lens/picture')
    budgets = show(robot, '/lens/picture', '/base/vlm_reuse_node/refresh_budget')
    asked = robot.call(AskScene, '/base/vlm_reuse_node/ask', AskScene.Request(question='what is it ?'))
    robot.until(asked.done, 'the answer')
    assert asked.result().answer.tokens_generated == 3 and budgets[0].camera == 'front'


@pytest.mark.parametrize('reliability', [ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE])
def test_a_topic_is_remapped_once(start, robot, reliability):
    """Two cameras whose topics are exchanged: after a second remapping each would hear the other's again."""
    start(
        '-p',
        'cameras:=[front, rear]',
        '-r',
        'front/image_raw:=/rear/image_raw',
        '-r',
        'rear/image_raw:=/front/image_raw',
    )
    camera = robot.camera('/rear/image_raw', qos=QoSProfile(depth=1, reliability=reliability))
    budgets = robot.listen(RefreshBudget, 'vlm_reuse_node/refresh_budget')

    def looked_at():
        camera.publish(picture_message(stamp_ns=robot.now_ns()))
        return budgets

    assert robot.until(looked_at, 'a refresh budget')[0].camera == 'front'


def test_a_planner_that_dies_with_open_questions_does_no_harm(start, robot):
    start()
    show(robot)
    with graph() as context:
        planner = Robot(context, '')
        for _ in range(5):
            planner.call(AskScene, 'vlm_reuse_node/ask', AskScene.Request(question='what is it ?', max_tokens=64))
    assert robot.ask().status == Answer.OK
