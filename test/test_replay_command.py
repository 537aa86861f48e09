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

"""The command as it is installed, and what it says when nothing can be answered."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from programs import environment
from replay_bags import frames, write_bag

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.replay import cli, results
from vlm_reuse_node.replay.runners.kept_state import Policy
from vlm_reuse_node.session.scene_session import SceneSession

ROOT = Path(__file__).parents[1]
TOPIC = '/camera/image_raw'


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp('bags') / 'bag', {TOPIC: frames(4)})


@pytest.fixture(scope='module')
def arguments(tmp_path_factory, model_dir):
    questions = tmp_path_factory.mktemp('questions') / 'questions.yaml'
    questions.write_text(yaml.safe_dump({'questions': [{'question': 'what is this', 'at_s': 0.6, 'max_tokens': 2}]}))
    return ['--questions', str(questions), '--model', str(model_dir), '--arms', 'cold']


def test_the_installed_command_replays_several_bags_at_a_time(bag, arguments, tmp_path):
    other = write_bag(tmp_path / 'other', {TOPIC: frames(3)})
    command = [
        sys.executable,
        'tools/vlm-reuse-replay',
        str(bag),
        str(other),
        *arguments,
        '--jobs',
        '2',
        '--out',
        str(tmp_path / 'out'),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = results.read(tmp_path / 'out' / 'results.json')
    assert [each['bag'] for each in found['bags']] == ['bag', 'other'] and found['complete']


def test_where_every_picture_is_refused_the_page_the_exit_code_and_the_terminal_say_why(
    bag, arguments, tmp_path, capsys
):
    out = tmp_path / 'out'
    code = cli.main([str(bag), *arguments, '--param', 'max_image_pixels=100', '--out', str(out)])
    said, page = capsys.readouterr().err, (out / 'report.html').read_text()
    assert code == cli.EXIT_FAILED
    for text in (said, page):
        assert 'Every picture was refused (4)' in text and 'expected at most 100 pixels' in text


def test_where_nothing_was_recorded_the_page_the_exit_code_and_the_terminal_say_so(arguments, tmp_path, capsys):
    empty = write_bag(tmp_path / 'empty', {'/text': []}, silent=(TOPIC,))
    out = tmp_path / 'out'
    code = cli.main([str(empty), *arguments, '--out', str(out)])
    said, page = capsys.readouterr().err, (out / 'report.html').read_text()
    assert code == cli.EXIT_FAILED
    for text in (said, page):
        assert f'There is no picture on {TOPIC}.' in text and '--start' not in text


def test_where_the_model_refuses_every_picture_the_page_and_the_exit_code_say_why(
    bag, arguments, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise ImageError('aspect', 'The picture is too narrow for this model.')

    monkeypatch.setattr(SceneSession, 'look', refuse)
    monkeypatch.setattr(Policy, 'see', refuse)
    out = tmp_path / 'out'
    assert cli.main([str(bag), *arguments, '--out', str(out)]) == cli.EXIT_FAILED
    page = (out / 'report.html').read_text()
    assert 'No question got an answer.' in page and 'too narrow for this model' in page
    assert results.read(out / 'results.json')['complete']


def test_a_topic_without_a_picture_is_told(bag, arguments, tmp_path):
    path = write_bag(tmp_path / 'bag', {TOPIC: frames(4)}, silent=('/rear/image_raw',))
    out = tmp_path / 'out'
    options = ['--topic', TOPIC, '--topic', '/rear/image_raw', '--out', str(out)]
    assert cli.main([str(path), *arguments, *options]) == 0
    assert results.read(out / 'results.json')['notes'] == ["Bag 'bag': Nothing was recorded on /rear/image_raw."]
    assert 'Nothing was recorded on /rear/image_raw' in (out / 'report.html').read_text()


def test_a_camera_that_is_passed_over_is_told(arguments, tmp_path, capsys):
    path = write_bag(tmp_path / 'bag', {'/front/image_raw': frames(4, 'front'), '/rear/image_raw': frames(4, 'rear')})
    out = tmp_path / 'out'
    assert cli.main([str(path), *arguments, '--topic', '/front/image_raw', '--out', str(out)]) == 0
    for text in (capsys.readouterr().out, (out / 'report.html').read_text()):
        assert '/rear/image_raw is not replayed: --topic names others.' in text
