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

"""The program `ask`: about a picture, about a recording, and a running node over real DDS."""

import json
import signal
import subprocess
import sys

import cv2
import pytest
from patience import PATIENCE_S
from programs import environment
from replay_bags import frames, write_bag
from tiny_model import picture

from vlm_reuse_node.ask.answer_lines import answer_lines
from vlm_reuse_node.ask.cli import EXIT_INTERRUPTED, main
from vlm_reuse_node.session.answer import Answer, Status

QUESTION = 'what color is the square ?'


@pytest.fixture(scope='module')
def png(tmp_path_factory):
    path = tmp_path_factory.mktemp('pictures') / 'kitchen.png'
    cv2.imwrite(str(path), picture(1).rgb[..., ::-1])
    return path


def ask(capsys, *arguments):
    code = main([*map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_picture_is_asked_about_without_ros(capsys, png, model_dir):
    code, out, _ = ask(capsys, QUESTION, '--choices', 'red', 'green', '--picture', png, '--model', model_dir)
    answer, scores, source, cost = out.splitlines()
    assert code == 0 and answer in ('red', 'green') and scores.split()[0] == answer
    assert 'exact' in source and 'camera kitchen' in source and 'full refresh' in cost


def test_a_long_text_is_printed_whole(capsys, monkeypatch):
    """It is what was asked for; only what it may do to a terminal is taken out."""
    text = ' '.join(f'word{number}' for number in range(600))
    monkeypatch.setattr('vlm_reuse_node.ask.cli._ask', lambda args: Answer(Status.OK, text=f'{text}\x1b[31m\nend'))
    code, out, _ = ask(capsys, QUESTION)
    first, *rest = out.splitlines()
    assert code == 0 and first == f'{text} [31m end' and len(rest) == 3 and '\x1b' not in out


def test_a_text_follows_its_schema_and_json_has_every_field(capsys, png, model_dir, tmp_path):
    code, out, _ = ask(capsys, QUESTION, '--max-tokens', 2, '--picture', png, '--model', model_dir, '--json')
    found = json.loads(out)
    assert code == 0 and found['status'] == 'OK' and len(found['token_ids']) <= 2 and found['level'] == 'full'
    assert set(found) == {field for field in Answer.__dataclass_fields__} | {'total_ms'}
    (tmp_path / 'schema.json').write_text('{"type": 7}')
    code, out, _ = ask(capsys, QUESTION, '--schema', tmp_path / 'schema.json', '--picture', png, '--model', model_dir)
    assert code == 1 and out.startswith('INVALID_REQUEST: ')


def test_a_recording_is_asked_about_at_a_time(capsys, model_dir, tmp_path):
    bag = write_bag(tmp_path / 'bag', {'/camera/image_raw': frames(10)})
    stamps = []
    for at_s in (0, 2.2):
        code, out, _ = ask(capsys, QUESTION, '--recording', bag, '--at', at_s, '--model', model_dir, '--json')
        assert code == 0
        stamps.append(json.loads(out)['stamp_ns'])
    assert stamps[1] - stamps[0] == 2_500_000_000  # the first picture from then on
    code, _, err = ask(capsys, QUESTION, '--recording', bag, '--at', 99, '--model', model_dir)
    assert code == 1 and 'from 99 s on' in err


def test_bad_input_is_one_sentence(capsys, png, tmp_path):
    for words, arguments in (
        ('none.png', ('--picture', tmp_path / 'none.png')),
        ('not a compressed picture', ('--picture', __file__)),
        ('no model directory', ('--picture', png, '--model', tmp_path / 'none')),
        ('no bag', ('--recording', tmp_path / 'none')),
    ):
        code, out, err = ask(capsys, QUESTION, *arguments)
        assert code == 1 and not out and words in err and err.count('\n') == 1
    with pytest.raises(SystemExit) as wrong:
        main([QUESTION, '--picture', str(png), '--recording', str(tmp_path)])
    assert wrong.value.code == 2


def test_what_was_said_is_shown_as_harmless_lines():
    evil = 'a\x1b[31m\nb'
    answer = Answer(Status.OK, text=evil, camera=evil, model=evil, choice_scores=(1.0, 0.0))
    lines = list(answer_lines(answer, (evil, 'c'))) + list(answer_lines(Answer(Status.STALE, evil), ()))
    assert len(lines) == 5 and all(line.isprintable() for line in lines)
    remembered = list(answer_lines(Answer(Status.OK, text='x', remembered=True), ()))
    assert 'had this answer before' in remembered[-1]


def command(namespace, *arguments):
    node = f'{namespace}/vlm_reuse_node'
    return [sys.executable, '-m', 'vlm_reuse_node.ask.cli', QUESTION, '--node', node, *arguments]


def live(namespace, *arguments):
    return subprocess.run(
        command(namespace, *arguments), capture_output=True, text=True, timeout=PATIENCE_S, env=environment()
    )


def test_a_running_node_is_asked_over_dds(robot, namespace):
    from ros_harness import BUDGET, show
    from vlm_reuse_interfaces.msg import RefreshBudget

    none = live(namespace, '--json')
    assert none.returncode == 1 and json.loads(none.stdout)['status'] == 'NO_IMAGE'
    stamp = show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET), seed=1)
    done = live(namespace, '--choices', 'red', 'green', '--json')
    assert done.returncode == 0, done.stderr
    found, own = json.loads(done.stdout), robot.ask(QUESTION, choices=['red', 'green'])
    assert (found['text'], found['choice_scores']) == (own.text, list(own.choice_scores))
    assert found['stamp_ns'] == stamp.sec * 10**9 + stamp.nanosec and found['camera'] == 'camera' and found['exact']
    unknown = live(namespace, '--camera', 'rear')
    assert unknown.returncode == 1 and unknown.stdout.startswith('INVALID_REQUEST: ') and 'rear' in unknown.stdout


def test_ctrl_c_cancels_a_question_also_while_the_model_is_busy(robot, namespace, brake):
    from ros_harness import BUDGET, show
    from vlm_reuse_interfaces.msg import RefreshBudget

    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET), seed=1)
    brake.hold()  # meanwhile the node sends nothing that would wake the program
    with subprocess.Popen(command(namespace), stderr=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert brake.held.wait(PATIENCE_S)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == EXIT_INTERRUPTED and error.endswith('ask: Stopped.\n')


def test_a_node_that_is_not_there_is_said(namespace, ros):
    missing = live(f'{namespace}/nowhere')
    assert missing.returncode == 1 and 'ros2 launch' in missing.stderr and missing.stderr.count('\n') == 1
