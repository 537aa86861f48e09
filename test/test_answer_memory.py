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

"""The memory of answers: it gives back what this state said to the same question, and keeps no more than it may."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_reuse_node.serving.watches import MOST_WATCHES
from vlm_reuse_node.session.answer_memory import MOST_ANSWERS, AnswerMemory
from vlm_reuse_node.session.answerer import TokenizedQuestion
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.question import Question

TOKENIZED = TokenizedQuestion(Question('what ?', max_tokens=4), 4, 0, [1, 2], [], 0.0, 0, '')


def asked(number):
    """A question of its own for every number."""
    return replace(TOKENIZED, tokens=[number])


def said(text):
    return Outcome(str(text), 1.0, token_ids=tuple(map(ord, str(text))))


def memory_of(*numbers, version=7):
    memory = AnswerMemory()
    for number in numbers:
        memory.remember(version, asked(number), said(number))
    return memory


def known(memory, numbers, version=7):
    """Which of these questions it knows, each with its own answer."""
    found = {number: memory.recall(version, asked(number)) for number in numbers}
    assert all(answer in (None, said(number)) for number, answer in found.items())
    return [number for number, answer in found.items() if answer]


def test_every_standing_question_has_room():
    assert MOST_ANSWERS == MOST_WATCHES


def test_a_new_memory_knows_nothing():
    assert AnswerMemory().recall(0, TOKENIZED) is None


def test_an_answer_comes_back_as_often_as_it_is_asked_for_and_the_question_may_be_another_object():
    memory = AnswerMemory()
    memory.remember(7, TOKENIZED, said('red'))
    for _ in range(3):
        assert memory.recall(7, replace(TOKENIZED, tokens=[1, 2])) == said('red')


@pytest.mark.parametrize(
    'other',
    [
        {'tokens': [1, 3]},
        {'tokens': [1]},
        {'question': Question('what ?', max_tokens=5)},
        {'question': Question('what ?', ('a', 'b'), max_tokens=4)},
        {'grammar': 'a document'},
        {'temperature': 0.5},
        {'seed': 1},
    ],
)
def test_every_part_that_an_answer_depends_on_makes_another_question(other):
    memory = AnswerMemory()
    memory.remember(7, TOKENIZED, said('red'))
    memory.remember(7, replace(TOKENIZED, **other), said('blue'))
    assert memory.recall(7, TOKENIZED) == said('red') and memory.recall(7, replace(TOKENIZED, **other)) == said('blue')


@pytest.mark.parametrize('other', [{'max_age_s': 1.0}, {'max_lag_s': 1.0}, {'timeout_s': 1.0}, {'force_refresh': True}])
def test_what_decides_only_whether_the_state_may_answer_makes_no_other_question(other):
    memory = memory_of(1)
    question = asked(1)
    assert memory.recall(7, replace(question, question=replace(question.question, **other))) == said(1)


def test_choices_in_another_order_are_another_question():
    memory, choices = AnswerMemory(), Question('what ?', ('a', 'b'), max_tokens=4)
    memory.remember(7, replace(TOKENIZED, question=choices), said('a'))
    assert memory.recall(7, replace(TOKENIZED, question=replace(choices, choices=('b', 'a')))) is None


def test_a_state_of_another_version_knows_nothing_until_it_has_answered_itself():
    memory = memory_of(1, 2)
    assert known(memory, (1, 2), version=8) == [] and known(memory, (1, 2)) == [1, 2]
    memory.remember(8, asked(1), said(1))
    assert known(memory, (1, 2), version=8) == [1] and known(memory, (1, 2), version=7) == [2]


def test_the_draft_of_an_answer_is_the_last_one_to_the_same_question_from_any_state():
    memory = memory_of(1)
    assert memory.draft(asked(1)) == said(1).token_ids and memory.draft(asked(2)) == ()
    memory.remember(8, asked(1), said(1))
    assert memory.draft(asked(1)) == said(1).token_ids
    assert memory.draft(replace(asked(1), seed=1)) == ()


@given(st.lists(st.text('ab', min_size=1, max_size=12), min_size=2, max_size=9))
def test_a_draft_is_as_long_as_the_last_two_answers_make_likely(texts):
    memory = AnswerMemory()
    for text in texts:
        memory.remember(7, TOKENIZED, said(text))
    common = 0
    while texts[-1][: common + 1] == texts[-2][: common + 1] and common < min(map(len, texts[-2:])):
        common += 1
    most = len(texts[-1]) if texts[-1] == texts[-2] else 2 * common + 2
    assert memory.draft(TOKENIZED) == said(texts[-1][:most]).token_ids


def test_an_answer_that_is_remembered_again_is_the_newer_one_and_takes_no_more_room():
    memory = memory_of(*range(MOST_ANSWERS))
    memory.remember(7, asked(0), said('newer'))
    assert memory.recall(7, asked(0)) == said('newer')
    assert known(memory, range(1, MOST_ANSWERS)) == list(range(1, MOST_ANSWERS))
    memory = memory_of(*range(MOST_ANSWERS), 0, MOST_ANSWERS)
    assert known(memory, (0, 1)) == [0]  # it counts as used


@given(st.lists(st.tuples(st.booleans(), st.integers(0, MOST_ANSWERS + 9)), max_size=400))
def test_at_the_limit_the_one_that_was_used_longest_ago_goes(steps):
    memory, used = AnswerMemory(), []  # used: what is to be known, the least recently used first
    for is_question, number in [*((False, each) for each in range(MOST_ANSWERS - 1)), *steps]:
        is_known = number in used
        if is_question:
            assert (memory.recall(7, asked(number)) == said(number)) == is_known
        else:
            memory.remember(7, asked(number), said(number))
        if is_known or not is_question:
            used = [*(each for each in used if each != number), number][-MOST_ANSWERS:]
    assert sorted(known(memory, range(MOST_ANSWERS + 10))) == sorted(used)
