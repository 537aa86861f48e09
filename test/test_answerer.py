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

"""What an answer may take, what it costs, what it says of itself; and that the state behind it is as before."""

import json
from functools import partial

import numpy as np
import pytest
from samplers import Script
from tiny_model import picture, write_tiny_model

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.session import answerer as answerers
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.answerer import Answerer
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.state import build
from vlm_reuse_node.session.turn import Halt, Turn

TEXT = 'what color is the square ?'
CHOICES = 'red', 'green circle', 'no it is not'
DOCUMENT = json.dumps({'enum': ['red', 'green']})


@pytest.fixture(scope='module')
def letters(tmp_path_factory):
    """The tiny model with byte-level tokens, which can write JSON."""
    return load(str(write_tiny_model(tmp_path_factory.mktemp('models') / 'letters', tokenizer='bytes')))


def seen(vlm):
    """A state of one picture, and an answerer."""
    state = build(vlm, partial(vlm.template, ''), [EncodedFrame.see(vlm, picture(1))])
    return state, Answerer(vlm, vlm.template('', 1))


def answered(vlm, question, turn=None, config=Config()):
    state, answerer = seen(vlm)
    return answerer.answer(state, answerer.tokenize(question, config), turn or Turn())


def observed(vlm):
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    return session


@pytest.mark.parametrize('choices', [(), CHOICES])
def test_an_answer_pays_for_its_question_and_every_choice(vlm, choices):
    session, template = observed(vlm), vlm.template('', 1)
    answer = session.ask(Question(TEXT, choices, max_tokens=2), now_ns=0)
    tokens = [template.question(TEXT), *template.choices(choices)]
    assert answer.tokens_prefilled == sum(map(len, tokens))


@pytest.mark.parametrize('question, steps', [(Question(TEXT, max_tokens=3), 2), (Question(TEXT, CHOICES), 0)])
def test_reading_the_question_and_giving_the_answer_are_timed_apart(vlm, monkeypatch, question, steps):
    """By a clock that counts the forward passes: one reads the question and its choices, the others decode."""
    passes = []
    for name, run in (('forward', vlm.family.forward), ('step', vlm.family.step)):
        monkeypatch.setattr(vlm.family, name, lambda *args, run=run, **kwargs: passes.append(1) or run(*args, **kwargs))
    state, answerer = seen(vlm)
    asked = answerer.tokenize(question, Config())
    passes.clear()
    monkeypatch.setattr('vlm_reuse_node.session.turn.time.perf_counter', lambda: float(len(passes)))
    turn = Turn()
    answerer.answer(state, asked, turn)
    assert len(passes) == 1 + steps
    assert turn.stages['prefill_ms'] == 1e3 and turn.stages.get('decode_ms', 0.0) == 1e3 * steps


@pytest.mark.parametrize('room', [1, 2, 5])
def test_a_text_ends_where_the_context_does(vlm, monkeypatch, room):
    state, answerer = seen(vlm)
    whole = answered(vlm, Question(TEXT, max_tokens=8))
    prompt = state.tokens + len(vlm.template('', 1).question(TEXT))
    assert len(whole.token_ids) == 8
    monkeypatch.setattr(vlm, 'context', prompt + room)
    cut = answered(vlm, Question(TEXT))  # short enoughs is taken for the default
    assert cut.token_ids == whole.token_ids[:room] and cut.message == f'The answer was cut at max_tokens {room}.'
    assert answered(vlm, Question(TEXT, max_tokens=room)).token_ids == cut.token_ids
    with pytest.raises(InvalidRequestError, match=f'{prompt + room + 1} tokens; expected at most {prompt + room}'):
        answered(vlm, Question(TEXT, max_tokens=room + 1))
    choices = 'red', ' '.join(['blue'] * room)
    assert answered(vlm, Question(TEXT, choices if room > 1 else ('red', 'blue'))).choice_index >= 0
    with pytest.raises(InvalidRequestError, match=f'{prompt + room + 1} tokens'):
        answered(vlm, Question(TEXT, ('red', ' '.join(['blue'] * (room + 1)))))
    monkeypatch.setattr(vlm, 'context', prompt)
    with pytest.raises(InvalidRequestError, match=f'{prompt + 1} tokens'):
        answered(vlm, Question(TEXT))
    monkeypatch.setattr(vlm, 'context', None)
    assert answered(vlm, Question(TEXT, max_tokens=8)) == whole


def test_a_text_that_ends_by_itself_was_not_cut(vlm, monkeypatch):
    whole = answered(vlm, Question(TEXT, max_tokens=8))
    end = next(index for index in range(1, 8) if whole.token_ids[index] not in whole.token_ids[:index])
    monkeypatch.setattr(vlm, 'stop_ids', (whole.token_ids[end],))
    ended = answered(vlm, Question(TEXT, max_tokens=8))
    assert ended.token_ids == whole.token_ids[:end] and ended.message == '' and ended.text == vlm.text(ended.token_ids)
    assert answered(vlm, Question(TEXT, max_tokens=end)).message == f'The answer was cut at max_tokens {end}.'


def test_the_likeliest_choice_is_the_answer_and_its_share_the_confidence(vlm):
    outcome = answered(vlm, Question(TEXT, CHOICES))
    assert outcome.choice_index == np.argmax(outcome.choice_scores) and outcome.text == CHOICES[outcome.choice_index]
    assert outcome.confidence == max(outcome.choice_scores) < 1 and outcome.token_ids == ()


@pytest.mark.parametrize('question', [Question(TEXT, max_tokens=3), Question(TEXT, CHOICES)])
@pytest.mark.parametrize('at', range(1, 5))
def test_the_state_is_put_back_whatever_stops_the_answer(vlm, question, at):
    state, answerer = seen(vlm)
    asked, looks = answerer.tokenize(question, Config()), []
    expected = answerer.answer(state, asked, Turn())
    try:
        answerer.answer(state, asked, Turn(cancelled=lambda: looks.append(1) or len(looks) == at))
    except Halt as stopped:
        assert stopped.status == Status.CANCELLED
    else:
        assert question.choices and at > 1  # one pass has nothing to stop at
    assert all(layer.offset == state.tokens for layer in state.cache)
    assert answerer.answer(state, asked, Turn()) == expected


def test_who_listens_hears_every_stage_and_the_text_grow(vlm):
    told = []
    outcome = answered(vlm, Question(TEXT, max_tokens=4), Turn(listener=told.append))
    assert [(each.stage, each.tokens_generated) for each in told] == [
        ('prefill', 0),
        *(('decode', count) for count in range(5)),
    ]
    assert [each.text for each in told[2:]] == [vlm.text(outcome.token_ids[:count]) for count in range(1, 5)]
    told.clear()
    answered(vlm, Question(TEXT, CHOICES), Turn(listener=told.append))
    assert [each.stage for each in told] == ['prefill']


def test_a_document_is_an_answer_only_when_it_is_whole(letters):
    whole = answered(letters, Question(TEXT, json_schema=DOCUMENT))
    assert json.loads(whole.text) in ('red', 'green') and 0 < whole.confidence <= 1
    count = len(whole.token_ids)
    assert count > 1 and letters.text(list(whole.token_ids)) == whole.text
    assert answered(letters, Question(TEXT, json_schema=DOCUMENT, max_tokens=count)).token_ids == whole.token_ids
    with pytest.raises(InvalidRequestError, match=f'max_tokens {count - 1}'):
        answered(letters, Question(TEXT, json_schema=DOCUMENT, max_tokens=count - 1))


def test_a_document_that_not_every_reader_takes_is_no_answer(letters, monkeypatch):
    """The schema allows every number, and the model wants one beyond all floats."""
    wanted = letters.template('', 1).choices(['1e999'])[0]
    monkeypatch.setattr(answerers, 'sampler', lambda temperature, seed: Script([*wanted, *letters.stop_ids]))
    with pytest.raises(InvalidRequestError, match='1e999'):
        answered(letters, Question(TEXT, json_schema='{"type": "number"}'))
