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

"""Answers that follow a JSON schema: whatever the model would say, the text parses and is valid."""

import json
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import given, settings, strategies
from tiny_model import picture, write_tiny_model

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model.json_schema import JsonSchemas
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

OBJECT = {
    'type': 'object',
    'properties': {'open': {'type': 'boolean'}, 'colour': {'enum': ['red', 'bl\u00fc', '"']}},
    'required': ['open', 'colour'],
    'additionalProperties': False,
}


@pytest.fixture(scope='module')
def session(tmp_path_factory):
    """A random model with byte-level tokens, like Qwen's; it has seen a picture."""
    session = SceneSession(
        load(str(write_tiny_model(tmp_path_factory.mktemp('json') / 'tiny', tokenizer='bytes'))), Config(max_tokens=400)
    )
    session.observe(picture(1))
    return session


def ask(session, schema, **fields):
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return session.ask(Question('what do you see ?', json_schema=text, **fields), now_ns=0)


LEAVES = strategies.sampled_from(
    [
        {'type': 'boolean'},
        {'type': 'null'},
        {'type': 'integer', 'minimum': -5, 'maximum': 120},
        {'type': 'number', 'minimum': -1.5, 'maximum': 2},
        {'type': 'integer', 'exclusiveMinimum': 2, 'maximum': 900},
        {'enum': ['a', 'b c', 7]},
        {'type': 'string', 'maxLength': 6},
        {'type': 'string', 'pattern': '^[a-f]{2,4}$'},
        {'const': 'it is \u00fc'},
    ]
)
SCHEMAS = strategies.recursive(
    LEAVES,
    lambda inner: strategies.one_of(
        inner.map(lambda items: {'type': 'array', 'items': items, 'maxItems': 2}),
        strategies.lists(inner, min_size=1, max_size=3).map(
            lambda parts: {
                'type': 'object',
                'properties': {f'part{i}': part for i, part in enumerate(parts)},
                'required': ['part0'],
                'additionalProperties': False,
            }
        ),
    ),
    max_leaves=5,
)


@settings(max_examples=40)
@given(SCHEMAS, strategies.integers(0, 3))
def test_every_answer_parses_and_is_valid(session, schema, seed):
    session.config = replace(session.config, temperature=1.5 if seed else 0.0, seed=seed)
    answer = ask(session, schema)
    assert answer.status == Status.OK, answer.message
    jsonschema.validate(json.loads(answer.text), schema)
    assert 0 < answer.confidence <= 1 and answer.token_ids
    assert answer.tokens_generated == (0 if answer.remembered else len(answer.token_ids))


def test_warm_equals_cold_and_the_next_free_answer_is_as_before(session):
    session.config = Config(max_tokens=400)
    question = Question('what do you see ?', json_schema=json.dumps(OBJECT))
    free = Question('what color ?', max_tokens=8)
    before = session.ask(free, now_ns=0)
    warm, cold = session.ask(question, now_ns=0), session.ask_cold(question, now_ns=0)
    assert warm.token_ids == cold.token_ids and warm.text == cold.text and warm.tokens_reused > 0
    assert session.ask(replace(free, max_tokens=9), now_ns=0).token_ids[:8] == before.token_ids


@pytest.mark.parametrize(
    'schema, named',
    [
        ('{', 'not JSON'),
        ('[]', 'no JSON object'),
        ('7', 'no JSON object'),
        ('[' * 20000, 'not JSON'),
        ({'not': {}}, 'not'),
        ({'type': 'objekt'}, 'objekt'),
        ({'enum': []}, 'empty'),
        ({'$ref': '#'}, 'followed'),
        ({'$ref': 'http://localhost/schema.json'}, 'followed'),
        ({'type': 'array', 'uniqueItems': True}, 'uniqueItems'),
        ('{' * 200_000, 'expected at most'),
        ({'type': 'number', 'exclusiveMinimum': 0, 'exclusiveMaximum': 0.5}, 'exclusiveMinimum'),
        # These end the process in llguidance 1.9.1, should they ever get there.
        ({'const': -9223372036854775807}, '9223372036854775807'),
        ({'enum': [-9223372036854775807]}, '2 to the 53rd'),
        ({'properties': {'a': {'minimum': -9223372036854775807, 'maximum': -9223372036854775806}}}, '2 to the 53rd'),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused_with_the_reason(session, schema, named, monkeypatch):
    monkeypatch.setattr('vlm_reuse_node.session.question.LONGEST_SCHEMA_CHARS', 100_000)
    answer = ask(session, schema)
    assert answer.status == Status.INVALID_REQUEST and named in answer.message and not answer.text


@pytest.mark.parametrize(
    'schema',
    [
        {'enum': [{'exclusiveMinimum': 3}]},
        {'type': 'integer', 'exclusiveMinimum': 3, 'examples': [1e20], 'maximum': 9},
        {'type': ['integer', 'null'], 'exclusiveMinimum': 0, 'maximum': 9},
    ],
)
def test_what_looks_like_a_bound_is_none(session, schema):
    session.config = Config(max_tokens=400)
    answer = ask(session, schema)
    assert answer.status == Status.OK, answer.message
    jsonschema.validate(json.loads(answer.text), schema)


def test_choices_and_a_schema_together_are_refused(session):
    answer = ask(session, OBJECT, choices=('yes', 'no'))
    assert answer.status == Status.INVALID_REQUEST and 'one of them' in answer.message


def test_what_does_not_fit_is_no_answer(session):
    answer = ask(session, {'type': 'string', 'minLength': 50}, max_tokens=4)
    assert answer.status == Status.INVALID_REQUEST and 'max_tokens 4' in answer.message and not answer.text


def test_a_document_that_just_fits_is_an_answer(session):
    tokens = ask(session, {'const': 'abc'}, max_tokens=300).tokens_generated
    assert ask(session, {'const': 'abc'}, max_tokens=tokens).text == '"abc"'


def test_a_number_that_is_cut_is_no_answer(session):
    """872 cut to 87 is a document that follows the schema, and is wrong."""
    whole = ask(session, {'type': 'integer', 'minimum': 100, 'maximum': 999}, max_tokens=20)
    assert whole.status == Status.OK and whole.tokens_generated == 3
    cut = ask(session, {'type': 'integer'}, max_tokens=2)
    assert cut.status == Status.INVALID_REQUEST and 'max_tokens 2' in cut.message and not cut.text
    assert ask(session, {'type': 'integer', 'minimum': 100, 'maximum': 999}, max_tokens=3).text == whole.text


@pytest.mark.parametrize(
    'text, named',
    [
        ('{"a": 1, "\\u0061": 2}', "'a' twice"),
        ('[' * 5000 + ']' * 5000, 'recursion'),
        ('[1e999]', '1e999'),
        ('-1e999', '-1e999'),
        ('1e30', None),
        ('{"a": {"b": 1}, "b": 1}', None),
    ],
)
def test_what_readers_do_not_read_alike_is_no_document(text, named):
    if named is None:
        return JsonSchemas.check(text)
    with pytest.raises(InvalidRequestError, match=named):
        JsonSchemas.check(text)


def test_a_model_of_whole_words_says_that_it_cannot(vlm):
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    answer = ask(session, OBJECT)
    assert answer.status == Status.INVALID_REQUEST and 'choices' in answer.message
    assert session.ask(Question('what color ?'), now_ns=0).status == Status.OK


def test_white_space_cannot_grow_whatever_the_schema_asks_for(session):
    session.config = Config(max_tokens=400)
    answer = ask(
        session,
        {
            'type': 'object',
            'properties': {},
            'additionalProperties': False,
            'x-guidance': {'whitespace_flexible': True},
        },
    )
    assert answer.text == '{}'
