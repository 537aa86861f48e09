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

"""What is asked, and when: at times, at intervals, on change; the questions file of a generated bag is one of these."""

import math

import pytest
import yaml
from replay_bags import frames

from vlm_reuse_node.demo.bag import write_bag
from vlm_reuse_node.demo.sidecar import read_sidecar
from vlm_reuse_node.replay.answer_text import is_degenerate, plain
from vlm_reuse_node.replay.questions import QuestionsError, read_questions
from vlm_reuse_node.replay.schedule import Schedule
from vlm_reuse_node.replay.truth import truth_at


def file_with(folder, *entries, **more):
    """A questions file."""
    path = folder / 'questions.yaml'
    path.write_text(yaml.safe_dump({'questions': list(entries), **more}))
    return path


def asked(items, pictures, camera='camera'):
    """(time, text) of all that is asked along the pictures, as (due, when it was noticed)."""
    schedule, found, begin_ns = Schedule(items, camera, 2.0), [], pictures[0].stamp_ns
    for frame in pictures:
        at_s = (frame.stamp_ns - begin_ns) / 1e9
        found += [(due.at_s, due.entry.text) for due in schedule.before(at_s)]
        found += [(due.at_s, due.entry.text) for due in schedule.at(at_s, frame)]
    return found


def test_the_questions_of_a_generated_bag_are_read_with_their_truths(tmp_path):
    path = write_bag(tmp_path / 'bag', seconds=6.0, rate_hz=1.0, width=64, height=48)
    planned, items = read_sidecar(path).questions, read_questions(path, ('camera',))
    assert [item.at_s[0] for item in items] == [question.at_s for question in planned]
    for item, question in zip(items, planned):
        assert (item.text, item.choices, item.tags[0]) == (question.text, question.choices, question.kind)
        assert truth_at(item.truths, question.at_s) == question.truth_at(question.at_s)


def test_times_and_intervals_are_due_once_each_and_in_order(tmp_path):
    items = read_questions(
        file_with(
            tmp_path,
            {'question': 'a', 'at_s': [0.0, 1.2, 99]},
            {'question': 'b', 'every_s': 1.0, 'from_s': 0.25},
            {'question': 'c', 'every_s': 0.5, 'from_s': 1.0, 'to_s': 2.0},
        ),
        ('camera',),
    )
    expected = [(0.0, 'a'), (0.25, 'b'), (1.0, 'c'), (1.2, 'a'), (1.25, 'b'), (1.5, 'c'), (2.25, 'b'), (3.25, 'b')]
    assert asked(items, frames(8)) == expected


def test_a_question_at_the_first_picture_is_one(tmp_path):
    items = read_questions(file_with(tmp_path, {'question': 'a', 'at_s': 0}), ('camera',))
    assert asked(items, frames(3)) == [(0.0, 'a')]


def test_a_question_on_change_is_asked_once_for_each_change_after_it_has_settled(tmp_path):
    items = read_questions(file_with(tmp_path, {'question': 'what changed', 'on_change': True}), ('camera',))
    # The scene changes with pictures 4 and 8, half a second apart.
    assert asked(items, frames(12)) == [(2.5, 'what changed'), (4.5, 'what changed')]
    assert asked(items, frames(12, changes_at=())) == []


def test_a_scene_that_never_settles_is_not_asked_about(tmp_path):
    items = read_questions(
        file_with(tmp_path, {'question': 'what changed', 'on_change': {'settle_s': 0.6}}), ('camera',)
    )
    assert asked(items, frames(10, changes_at=tuple(range(1, 10)))) == []


def test_a_question_for_one_camera_is_not_asked_of_another(tmp_path):
    items = read_questions(file_with(tmp_path, {'question': 'a', 'at_s': 0.1, 'camera': 'front'}), ('front', 'back'))
    assert asked(items, frames(3), 'front') and not asked(items, frames(3), 'back')


def test_an_expected_answer_is_true_all_the_time(tmp_path):
    (item,) = read_questions(
        file_with(
            tmp_path, {'question': 'a', 'every_s': 1, 'choices': ['yes', 'no'], 'expected': 'no', 'tags': ['x', 'y']}
        ),
        (),
    )
    assert {truth_at(item.truths, second) for second in (0.0, 50.0)} == {'no'} and item.tags == ('x', 'y')


def test_there_is_a_general_set_for_any_scene():
    items = read_questions(None, ('camera',))
    assert any(item.choices for item in items) and any(not item.choices for item in items)
    assert all(item.truths == () and math.isinf(item.to_s) for item in items)


@pytest.mark.parametrize(
    'entry, sentence',
    [
        ({'at_s': 1}, 'Question 1 .* has no text'),
        ({'question': 'a'}, 'has no time to ask it'),
        ({'question': 'a', 'at_s': 1, 'every_s': 2}, 'has at_s and every_s; expected one'),
        ({'question': 'a', 'at_s': -1}, 'has at_s -1; expected a number'),
        ({'question': 'a', 'at_s': []}, 'has no time to ask it'),
        ({'question': 'a', 'every_s': 0}, 'has every_s 0; expected at least'),
        ({'question': 'a', 'at_s': math.inf}, 'has at_s inf; expected a number'),
        ({'question': 'a', 'at_s': 1, 'max_tokens': math.inf}, 'has max_tokens inf; expected a number'),
        ({'question': 'a', 'at_s': 1, 'choises': []}, 'has choises; known are'),
        ({'question': 'a', 'at_s': 1, 'choises': [], 3: 4}, 'has 3, choises; known are'),
        ({'question': 'a', 'at_s': 1, 'answers': [{'from_s': 0, 'to_s': 1, 'answer': True}]}, 'YAML reads yes, no'),
        ({'question': 'a', 'at_s': 1, 'answers': ['b']}, 'expected a list of from_s, to_s and answer'),
        ({'question': 'a', 'at_s': 1, 'choices': [True]}, 'YAML reads yes, no, on and off as that'),
        ({'question': 'a', 'at_s': 1, 'choices': ['b'], 'expected': 'c'}, 'expects c, which is none of its choices'),
        ({'question': 'a', 'at_s': 1, 'answers': [{'from_s': 1}]}, 'expected a list of from_s, to_s and answer'),
        ({'question': 'a', 'on_change': {'often': 1}}, 'expected true, or some of'),
        ({'question': 'a', 'at_s': 1, 'camera': 'rear'}, 'asks the camera rear; the bag is replayed with camera'),
    ],
)
def test_a_wrong_entry_is_named_with_what_was_expected(tmp_path, entry, sentence):
    with pytest.raises(QuestionsError, match=sentence):
        read_questions(file_with(tmp_path, entry), ('camera',))


@pytest.mark.parametrize('content', ['', 'questions: []', '- a', '{', 'questions: 3'])
def test_a_file_without_questions_is_refused(tmp_path, content):
    path = tmp_path / 'questions.yaml'
    path.write_text(content)
    with pytest.raises(QuestionsError, match='questions file') as refused:
        read_questions(path, ('camera',))
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize('text, same', [('Red.', 'red'), ('  the  Red\ncube!', 'the red cube'), ('"yes"', 'yes')])
def test_answers_are_compared_without_case_and_outer_punctuation(text, same):
    assert plain(text) == same


@pytest.mark.parametrize(
    'text, degenerate',
    [
        ('', True),
        ('no no no no', True),
        ('red cube red cube red cube red cube', True),
        ('no no no', False),
        ('a red cube and a red ball', False),
    ],
)
def test_degenerate_answers_are_empty_or_repeat_themselves(text, degenerate):
    assert is_degenerate(text) == degenerate
