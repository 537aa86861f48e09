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

"""Hostile text at every entrance of the node and of the programs: every exit shows one harmless line."""

import logging
import shutil
from importlib.util import module_from_spec, spec_from_file_location

import cv2
import numpy as np
import pytest
import yaml
from replay_bags import frames, write_bag

from vlm_reuse_node.ask.cli import main as ask_main
from vlm_reuse_node.plain_text import LONGEST_LINE, log_lines, one_line, print_error, print_rows
from vlm_reuse_node.replay.cli import main as replay_main
from vlm_reuse_node.replay.page import page_environment
from vlm_reuse_node.ros import plain_logger

FORGED = '[FATAL] forged'
HOSTILE = f'rgb8\n{FORGED}\x1b[31m\u202e\u2066\x9b2J\x00\r' + 'x' * 100_000
BAD = set('\x1b\u202e\u2066\x9b\x00\r')


def harmless(text):
    """Whether no line begins with the forged one, and no character controls a terminal or the order of text."""
    return not BAD & set(text) and not any(line.startswith(FORGED) for line in text.splitlines())


def test_a_text_becomes_one_line_of_bounded_length():
    line = one_line(HOSTILE)
    assert line.isprintable() and len(line) <= LONGEST_LINE and FORGED in line
    assert one_line('  two\n words ') == 'two words' and one_line('') == ''
    assert len(one_line('y' * 10)) == 10 and one_line('y' * 10, 9) == 'y' * 8 + '…'


def test_what_is_logged_and_printed_is_harmless(capsys):
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        record = logging.LogRecord('x', logging.ERROR, 'f', 1, 'It failed: %s', (HOSTILE,), (ValueError, error, None))
    lines = log_lines(record)
    assert all(line.isprintable() and len(line) <= LONGEST_LINE for line in lines)
    print_rows([HOSTILE, 'a  table   row'])
    print_error('program', HOSTILE)
    said = capsys.readouterr()
    assert harmless(said.out) and harmless(said.err) and 'a  table   row' in said.out
    assert (said.out.count('\n'), said.err.count('\n')) == (2, 1)


def test_a_page_shows_no_text_that_changes_the_order_of_others(tmp_path):
    page = page_environment(tmp_path).from_string('<p>{{ text }}</p>').render(text=HOSTILE + '<script>')
    assert harmless(page) and '<script>' not in page


def test_file_names_and_recordings_and_questions_reach_no_terminal_raw(capsys, tmp_path, model_dir):
    name = 'ba\ng\x1b[31m\u202e' + FORGED
    missing = tmp_path / ('no such' + name)
    for program in (replay_main, lambda words: ask_main(['what is this?', '--recording', *words])):
        assert program([str(missing), '--model', str(model_dir)]) != 0
        said = capsys.readouterr()
        assert harmless(said.err) and harmless(said.out) and said.err.count('\n') <= 2
    bag = write_bag(tmp_path / name, {f'/lens{HOSTILE[:60]}'.replace('\x00', ''): frames(3)})
    questions = tmp_path / ('questions\n' + FORGED + '.yaml')
    entry = {'question': HOSTILE[:200].replace('\x00', ''), 'at_s': 0.6, 'choices': ['a', 'b\n' + FORGED]}
    questions.write_text(yaml.safe_dump({'questions': [entry]}))
    arguments = [str(bag), '--questions', str(questions), '--model', str(model_dir), '--arms', 'cold']
    replay_main([*arguments, '--out', str(tmp_path / 'out')])
    said = capsys.readouterr()
    assert harmless(said.out) and harmless(said.err)
    for page in (tmp_path / 'out').glob('*.html'):
        assert harmless(page.read_text())


def test_an_answer_on_a_terminal_is_harmless(capsys, tmp_path, model_dir):
    path = tmp_path / f'kitchen\n{FORGED}\x1b[31m.png'
    cv2.imwrite(str(tmp_path / 'p.png'), np.full((64, 64, 3), 99, np.uint8))
    (tmp_path / 'p.png').rename(path)
    code = ask_main(
        ['what\n' + FORGED, '--choices', 'a\n' + FORGED, 'b', '--picture', str(path), '--model', str(model_dir)]
    )
    said = capsys.readouterr()
    assert code == 0 and harmless(said.out) and harmless(said.err)


@pytest.fixture
def robot_with_texts(request):
    """A robot, and a function that gives all texts of the node's diagnostics and log so far."""
    pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
    robot = request.getfixturevalue('robot')
    from diagnostic_msgs.msg import DiagnosticArray
    from rcl_interfaces.msg import Log
    from rclpy.qos import QoSProfile

    diagnostics = robot.listen(DiagnosticArray, '/diagnostics')
    log = robot.listen(Log, '/rosout', QoSProfile(depth=100))

    def all_texts():
        for message in diagnostics:
            for status in message.status:
                yield from (status.name, status.message, status.hardware_id)
                for pair in status.values:
                    yield from (pair.key, pair.value)
        yield from (entry.msg for entry in log)

    return robot, all_texts


def test_hostile_messages_and_requests_are_told_in_harmless_lines(robot_with_texts, capfd):
    robot, texts = robot_with_texts
    from ros_harness import BUDGET, picture_message, set_parameter, show
    from vlm_reuse_interfaces.msg import Answer, RefreshBudget
    from vlm_reuse_interfaces.srv import AddWatch

    hostile = HOSTILE.replace('\x00', '')  # a message's text ends there
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    broken = picture_message(stamp_ns=robot.now_ns())
    broken.encoding = hostile
    camera.publish(broken)
    robot.until(lambda: any('encoding' in text and FORGED in text for text in texts()), 'the refusal')
    show(robot, camera, budgets, frame_id=hostile)
    answers = [
        robot.ask(camera=hostile),
        robot.ask(question=hostile),
        robot.ask(question='what is it ?', choices=[hostile, hostile]),
        robot.ask(question='what is it ?', json_schema=hostile[:200]),
        robot.ask(question='what is it ?', choices=['a', hostile[:50]]),
    ]
    assert [answer.status for answer in answers[:4]] == [Answer.INVALID_REQUEST] * 4
    request = AddWatch.Request(question=hostile, camera=hostile, choices=['a', hostile[:30]])
    added = robot.wait(robot.call(AddWatch, 'vlm_reuse_node/add_watch', request), 'the watch')
    refused = [set_parameter(robot, 'cameras', [hostile[:200]]), set_parameter(robot, 'image_transport', hostile)]
    assert not added.success and not any(result.successful for result in refused)
    messages = [*(answer.message for answer in answers), added.message, *(result.reason for result in refused)]
    assert answers[-1].header.frame_id == hostile  # what belongs to the source stays what it is
    for text in (*messages, *texts(), *(budget.reason for budget in budgets)):
        assert (text.isprintable() or not text) and len(text) <= LONGEST_LINE
    said = capfd.readouterr()
    assert harmless(said.err) and harmless(said.out)


def test_the_logger_may_be_called_at_several_severities_through_a_link_to_the_package(tmp_path):
    link = tmp_path / 'plain_logger.py'  # as colcon build --symlink-install makes it
    link.symlink_to(shutil.copy(plain_logger.__file__, tmp_path / 'installed.py'))
    spec = spec_from_file_location('linked_plain_logger', link)
    linked = module_from_spec(spec)
    spec.loader.exec_module(linked)
    logger = linked.PlainLogger('linked')
    assert logger.info('loading') and logger.warning(HOSTILE)
    assert [logger.warning('again', once=True) for _ in range(2)] == [True, False]
