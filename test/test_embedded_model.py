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

"""The embedded model says where its answers mean nothing, and which words it does not know."""

import json
from dataclasses import replace

import cv2
import pytest
import yaml
from replay_bags import frames, write_bag

from vlm_reuse_node.ask.cli import main as ask_main
from vlm_reuse_node.demo.bag import draw_frames
from vlm_reuse_node.demo.questions import COUNTS
from vlm_reuse_node.demo.words import WORDINGS, vocabulary
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.replay.cli import main as replay_main
from vlm_reuse_node.scene.frame import TABLETOP_FRAME
from vlm_reuse_node.session.embedded_model import MEANS_NOTHING, check_words, unknown_words
from vlm_reuse_node.session.question import LONGEST_QUESTION_CHARS, Question

KNOWN = 'what color is the square'
TOPIC = '/camera/image_raw'


@pytest.mark.parametrize(
    'text, words',
    [
        ('Is the door open?', ['door', 'open']),
        ("What's the zebra's colour?", ['zebra']),
        ('how many objects are there', []),
        ('9 Öfen', ['9', 'fen']),
        ('z' * (LONGEST_QUESTION_CHARS + 1), []),
    ],
)
def test_the_words_that_it_does_not_know_are_named(text, words):
    assert unknown_words(text) == words


def test_it_knows_every_word_of_the_demo():
    shown = [text.format('red circle', 'blue square', any='object') for group in WORDINGS.values() for text in group]
    assert not [text for text in (*shown, ' '.join(vocabulary()), *COUNTS) if unknown_words(text)]


def test_a_question_and_its_choices_are_checked_for_this_model_alone():
    with pytest.raises(InvalidRequestError, match="'door', 'ajar'"):
        check_words('tabletop', Question('is the door there', choices=('yes', 'ajar')))
    check_words('tabletop', Question(KNOWN, choices=('red', 'green')))
    check_words('Qwen2.5-VL', Question('is the door open'))


@pytest.fixture(scope='module')
def tabletop_frames():
    return list(draw_frames(1, 3.0, 2.0, 640, 480)[1])[:3]


def test_a_picture_is_answered_with_a_mark_and_unknown_words_are_not(capsys, tmp_path, tabletop_frames):
    png = tmp_path / 'kitchen.png'
    cv2.imwrite(str(png), tabletop_frames[0].rgb[..., ::-1])
    assert ask_main([KNOWN, '--picture', str(png)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == MEANS_NOTHING
    assert ask_main(['is the door open', '--picture', str(png)]) == 1
    assert "'door', 'open'" in capsys.readouterr().err


@pytest.mark.parametrize('frame_id, is_marked', [(TABLETOP_FRAME, False), ('camera_optical', True)])
def test_a_recording_of_another_scene_is_marked_in_the_first_line(
    capsys, tmp_path, tabletop_frames, frame_id, is_marked
):
    bag = write_bag(tmp_path / 'bag', {TOPIC: [replace(frame, frame_id=frame_id) for frame in tabletop_frames]})
    assert ask_main([KNOWN, '--recording', str(bag)]) == 0
    assert (capsys.readouterr().out.splitlines()[0] == MEANS_NOTHING) == is_marked
    questions = tmp_path / 'questions.yaml'
    questions.write_text(yaml.safe_dump({'questions': [{'question': KNOWN, 'at_s': 0.6, 'max_tokens': 2}]}))
    out = tmp_path / 'out'
    arguments = [str(bag), '--questions', str(questions), '--arms', 'cold', '--out', str(out)]
    assert replay_main(arguments) == 0
    assert (capsys.readouterr().out.splitlines()[0] == f'No verdict: {MEANS_NOTHING}') == is_marked
    page = (out / 'report.html').read_text()
    assert (f'<h1>No verdict: {MEANS_NOTHING}</h1>' in page) == is_marked == (MEANS_NOTHING in page)
    assert ('class="cards unproven"' in page) == is_marked  # its figures are small
    assert any(MEANS_NOTHING in note for note in json.loads((out / 'results.json').read_text())['notes']) == is_marked


def test_another_model_is_never_marked(capsys, tmp_path, model_dir):
    bag = write_bag(tmp_path / 'bag', {TOPIC: frames(2)})
    assert ask_main(['what is this', '--recording', str(bag), '--model', str(model_dir)]) == 0
    assert MEANS_NOTHING not in capsys.readouterr().out


def test_the_node_marks_answers_and_refuses_words(request):
    pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
    start = request.getfixturevalue('start')
    from diagnostic_msgs.msg import DiagnosticStatus
    from ros_harness import BUDGET, show
    from vlm_reuse_interfaces.msg import Answer, RefreshBudget
    from vlm_reuse_interfaces.srv import AddWatch

    robot = start(model='tabletop')
    diagnostics, budgets, camera = robot.diagnostics(), robot.listen(RefreshBudget, BUDGET), robot.camera()
    show(robot, camera, budgets, frame_id=TABLETOP_FRAME, size=(480, 640))
    answer = robot.ask(question=KNOWN)
    assert answer.status == Answer.OK and MEANS_NOTHING not in answer.message
    show(robot, camera, budgets, frame_id='lens', size=(480, 640), seed=2)
    assert robot.ask(question=KNOWN).message.startswith(MEANS_NOTHING)
    robot.until(
        lambda: MEANS_NOTHING in diagnostics().get('camera camera', DiagnosticStatus()).message, 'the diagnostics'
    )
    for request in ({'question': 'is the door open'}, {'question': KNOWN, 'choices': ['red', 'ajar']}):
        answer = robot.ask(**request)
        assert answer.status == Answer.INVALID_REQUEST and ('door' in answer.message or 'ajar' in answer.message)
    request = AddWatch.Request(question='is the door there', choices=['yes', 'no'])
    added = robot.wait(robot.call(AddWatch, 'vlm_reuse_node/add_watch', request), 'the watch')
    assert not added.success and "'door'" in added.message
