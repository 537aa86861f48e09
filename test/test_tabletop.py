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

"""The tabletop: the same seed gives the same bag, and the true answers are true."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader

from vlm_reuse_node.demo import bag, questions, story, tabletop, words
from vlm_reuse_node.demo.model_files import build_tokenizer
from vlm_reuse_node.demo.scene_truth import single_truth, window_truth
from vlm_reuse_node.demo.tabletop import Thing

RED_SQUARE = Thing('square', 'red', 60, 60, 60)
BLUE_SQUARE = Thing('square', 'blue', 250, 190, 60)
GREEN_CROSS = Thing('cross', 'green', 250, 60, 60)
THREE = (RED_SQUARE, BLUE_SQUARE, GREEN_CROSS)


@pytest.mark.parametrize(
    'topic, parts, answer',
    [
        ('colour', ('cross',), 'green'),
        ('colour', ('square',), None),
        ('colour', ('circle',), words.NONE),
        ('shape', ('blue',), 'square'),
        ('shape', ('white',), words.NONE),
        ('count all', (), '3'),
        ('count colour', ('red',), '1'),
        ('count shape', ('square',), '2'),
        ('exists', ('red cross',), 'no'),
        ('exists', ('green cross',), 'yes'),
        ('exists', ('blue',), 'yes'),
        ('where', ('red square',), 'top left'),
        ('where', ('cross',), 'top right'),
        ('where', ('square',), None),
        ('side row', ('blue square',), 'bottom'),
        ('side column', ('blue square',), 'right'),
        ('left of', ('red square', 'cross'), 'yes'),
        ('right of', ('red square', 'cross'), 'no'),
        ('above', ('cross', 'blue square'), 'yes'),
        ('above', ('cross', 'red square'), None),
        ('nearest', ('bottom right corner',), 'blue square'),
        ('nearest', ('center',), None),
        ('list', (), None),
    ],
)
def test_truth_about_one_picture(topic, parts, answer):
    """Every kind of question, among them those that nobody should be asked."""
    assert single_truth(topic, parts, THREE) == answer


def test_list_goes_from_left_to_right():
    """Where no two things share a column."""
    things = (BLUE_SQUARE, RED_SQUARE)
    assert single_truth('list', (), things) == 'red square and blue square'
    assert single_truth('list', (), ()) == words.NOTHING


@pytest.mark.parametrize(
    'topic, parts, last, answer',
    [
        ('appeared', (), (*THREE, Thing('circle', 'white', 100, 190, 50)), 'white circle'),
        ('appeared', (), THREE[:2], words.NOTHING),
        ('left', (), THREE[:2], 'green cross'),
        ('moved', (), (replace(RED_SQUARE, x=150), *THREE[1:]), 'red square'),
        ('moved', (), THREE, words.NOTHING),
        ('direction', ('red square',), (replace(RED_SQUARE, x=150), *THREE[1:]), 'right'),
        ('direction', ('cross',), (*THREE[:2], replace(GREEN_CROSS, y=150)), 'down'),
        ('direction', ('cross',), THREE, words.STAYED),
        ('appeared', (), (replace(RED_SQUARE, colour='white'), *THREE[1:]), None),
    ],
)
def test_truth_about_a_window(topic, parts, last, answer):
    """What appeared, left and moved; a change of colour is no such thing."""
    assert window_truth(topic, parts, THREE, last) == answer


def test_every_question_and_answer_is_in_the_vocabulary():
    """No word of any wording becomes unknown, but those that are meant to."""
    tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
    for _ in range(150):
        things = tabletop.random_things(rng, int(rng.integers(1, 6)))
        for kind in words.SINGLE_KINDS:
            asked = questions.single_question(rng, things, kind)
            if asked:
                assert ('[UNK]' in tokenizer.encode(asked.text).tokens) == (kind == 'unknown'), asked
                assert '[UNK]' not in tokenizer.encode(asked.answer).tokens
                assert not asked.choices or asked.answer in asked.choices
                assert len(asked.choices) != 1


def test_case_punctuation_and_spelling_do_not_matter():
    """A person's way of writing reaches the same tokens."""
    tokenizer = build_tokenizer()
    plain = tokenizer.encode('what is the color of the circle').ids
    assert tokenizer.encode("What's the COLOUR of the circle?").ids == plain
    assert tokenizer.decode(plain) == 'what is the color of the circle'


@pytest.mark.parametrize('colour', tabletop.COLOURS)
def test_a_thing_is_drawn_where_and_as_it_is_said(colour):
    """Its centre shows its colour, at any resolution, and the table shows elsewhere."""
    for width, height in ((640, 480), (336, 252)):
        table = tabletop.Tabletop(np.random.default_rng(3), width, height)
        empty, seen = table.picture(()), table.picture((replace(RED_SQUARE, colour=colour),))
        changed = np.abs(seen - empty).max(-1) > 1
        scale = width / tabletop.WIDTH
        centre = seen[round(60 * scale), round(60 * scale)]
        other = {name: np.linalg.norm(centre - rgb) for name, rgb in tabletop.COLOURS.items()}
        assert min(other, key=other.get) == colour
        assert not changed[:, round(120 * scale) :].any()


def test_things_stay_clear_of_each_other():
    """No two things touch, and none leaves the table, whatever happens."""
    rng = np.random.default_rng(1)
    for span in story.tell(rng, 120.0):
        for things in (span.things, span.goal):
            for index, thing in enumerate(things):
                assert thing.size / 2 <= thing.x <= tabletop.WIDTH - thing.size / 2
                assert all(
                    np.hypot(thing.x - other.x, thing.y - other.y) > (thing.size + other.size) / 2
                    for other in things[:index]
                )


def test_a_story_has_no_gaps():
    """Spans follow each other to the end; a motion ends where the next span begins."""
    spans = story.tell(np.random.default_rng(2), 30.0)
    assert spans[0].from_s == 0 and spans[-1].to_s == 30.0
    for before, after in zip(spans, spans[1:]):
        assert before.to_s == after.from_s
        assert before.is_steady or before.goal == after.things


@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_the_same_seed_writes_the_same_bag(tmp_path, transport):
    """Byte for byte; another seed writes another."""
    contents = []
    for name, seed in (('one', 5), ('two', 5), ('three', 6)):
        (tmp_path / name).mkdir()
        sidecar = bag.write_bag(tmp_path / name / 'table', seed=seed, seconds=4.0, rate_hz=2.0, transport=transport)
        contents.append((sidecar.read_bytes(), (tmp_path / name / 'table' / 'table.mcap').read_bytes()))
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_a_bag_holds_what_its_sidecar_says(tmp_path):
    """Pictures at the rate, stamps as in the headers; every question has a true answer at its time."""
    sidecar = yaml.safe_load(bag.write_bag(tmp_path / 'table', seed=1, seconds=8.0, rate_hz=5.0).read_text())
    with AnyReader([tmp_path / 'table'], default_typestore=bag._TYPES) as reader:
        messages = [
            (stamp, reader.deserialize(raw, connection.msgtype)) for connection, stamp, raw in reader.messages()
        ]
    assert len(messages) == 40
    for stamp, message in messages:
        assert stamp == message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        assert (message.height, message.width, message.step) == (480, 640, 1920)
    assert sidecar['questions']
    for question in sidecar['questions']:
        true = [span['answer'] for span in question['answers'] if span['from_s'] <= question['at_s'] <= span['to_s']]
        assert len(true) == 1
        assert not question['choices'] or true[0] in question['choices']
