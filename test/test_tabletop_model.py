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

"""The embedded model: a real mlx-vlm model directory that answers about the tabletop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vlm_reuse_node.config import Config
from vlm_reuse_node.demo import questions, words
from vlm_reuse_node.demo.model_files import MODEL_DIRECTORY, write_model_files
from vlm_reuse_node.demo.tabletop import Sensor, Tabletop, Thing, random_things, sense
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

THINGS = (
    Thing('square', 'red', 80, 70, 60),
    Thing('circle', 'blue', 250, 180, 60),
    Thing('cross', 'green', 250, 60, 60),
)
ROOT = Path(__file__).parent.parent
if not (MODEL_DIRECTORY / 'model.safetensors').exists():
    pytest.skip(
        'vlm_reuse_node/demo/tabletop_model/model.safetensors is missing: make train-tabletop', allow_module_level=True
    )


def picture(things=THINGS, seed=4):
    """(480, 640, 3) uint8."""
    rng = np.random.default_rng(seed)
    return sense(Tabletop(rng).picture(things), Sensor(), rng)


@pytest.fixture(scope='module')
def session():
    """A session that has seen THINGS."""
    session = SceneSession(load('tabletop'), Config())
    session.observe(Frame(picture()))
    return session


@pytest.mark.parametrize(
    'text, answer',
    [
        ('what color is the circle', 'blue'),
        ('What COLOUR is the circle?', 'blue'),
        ("what's the colour of the cross?", 'green'),
        ('what shape is the red thing?', 'square'),
        ('How many circles are there?', '1'),
        ('Is there a red square?', 'yes'),
        ('is there a triangle', 'no'),
        ('what colour is the triangle?', words.NONE),
    ],
)
def test_it_answers_in_a_persons_words(session, text, answer):
    """Several wordings; case, spelling and question mark do not matter."""
    assert session.ask(Question(text), now_ns=0).text == answer


def test_unknown_words_are_answered_politely(session):
    """They neither crash it nor make it guess."""
    given = session.ask(Question('Where is the zebra?'), now_ns=0)
    assert (given.status, given.text) == (Status.OK, words.UNKNOWN)
    assert session.ask(Question('qwertz 123 !?'), now_ns=0).status is Status.OK


def test_choices_take_the_true_one(session):
    """Scored by logits, with most of the probability."""
    given = session.ask(Question('what color is the circle', choices=('red', 'blue', 'green')), now_ns=0)
    assert given.text == 'blue' and given.choice_scores[1] > 0.9


def test_held_out_scenes_are_answered():
    """Colours, shapes and existence on scenes it was not trained on: at least 9 of 10 exactly right."""
    session, rng = SceneSession(load('tabletop'), Config()), np.random.default_rng(987_654)
    right = asked = 0
    for seed in range(12):
        things = random_things(rng, int(rng.integers(1, 5)))
        session.observe(Frame(picture(things, seed)), force=True)
        for kind in ('colour', 'shape', 'exists'):
            question = questions.single_question(rng, things, kind)
            if question:
                asked += 1
                right += session.ask(Question(question.text), now_ns=0).text == question.answer
    assert asked >= 25
    assert right >= 0.9 * asked


def test_mlx_vlm_generates_with_it_from_the_command_line(tmp_path):
    """Without anything of this package: the directory is an ordinary model."""
    cv2.imwrite(str(tmp_path / 'table.png'), picture()[..., ::-1])
    command = [
        sys.executable,
        '-m',
        'mlx_vlm.generate',
        '--model',
        str(MODEL_DIRECTORY),
        '--image',
        str(tmp_path / 'table.png'),
        '--prompt',
        'what color is the circle?',
        '--max-tokens',
        '8',
        '--temperature',
        '0',
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300, env={**os.environ, 'HF_HUB_OFFLINE': '1'}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'blue' in done.stdout


def test_the_files_beside_the_weights_are_what_the_code_writes(tmp_path):
    """Tokenizer, chat template and shapes cannot drift from the code that trains."""
    write_model_files(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (MODEL_DIRECTORY / path.name).read_bytes(), path.name


def test_the_directory_is_small_and_complete():
    """At most 16 MB of weights; the card says how well it sees."""
    assert (MODEL_DIRECTORY / 'model.safetensors').stat().st_size <= 16e6
    assert json.loads((MODEL_DIRECTORY / 'config.json').read_text())['model_type'] == 'qwen2_5_vl'
    card = (MODEL_DIRECTORY / 'README.md').read_text()
    accuracy = card.split('<!-- accuracy -->')[1].split('<!-- /accuracy -->')[0]
    assert all(kind in accuracy for kind in words.SINGLE_KINDS)
