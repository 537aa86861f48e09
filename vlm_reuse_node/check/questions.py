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

"""The questions that the check asks: choices, free text, and a JSON schema."""

import json
from collections.abc import Sequence

from vlm_reuse_node.config import Config
from vlm_reuse_node.session.answerer import Answerer
from vlm_reuse_node.session.question import Question

TEXT_TOKENS, DOCUMENT_TOKENS = 12, 48
COLOURS = ('red', 'green', 'blue', 'yellow')
PLACES = ('top left', 'top right', 'bottom left', 'bottom right')
THINGS = (
    'square',
    'circle',
    'object on the left',
    'object on the right',
    'red square',
    'green circle',
    'object in the center',
    'blue square',
    'yellow circle',
    'object at the top',
    'object at the bottom',
    'red circle',
)
SCHEMA = json.dumps(
    {
        'type': 'object',
        'properties': {'seen': {'type': 'boolean'}},
        'required': ['seen'],
        'additionalProperties': False,
    }
)
DOCUMENT = Question('is there a square or a circle ?', json_schema=SCHEMA, max_tokens=DOCUMENT_TOKENS)


def make_questions(answerer: Answerer, config: Config, schema: bool) -> list[Question]:
    """Return all questions, in the order in which they are asked, each with other tokens than the others.

    schema: whether the model can follow a JSON schema. Then the third question has one.
    Raises InvalidRequestError when the model's tokenizer cannot tell the choices of a question apart.
    """
    questions: list[Question] = []
    for thing in THINGS:
        questions += [
            Question(f'what color is the {thing} ?', COLOURS),
            Question(f'what is the {thing} ?', max_tokens=TEXT_TOKENS),
            Question(f'where is the {thing} ?', PLACES),
            Question(f'do you see the {thing} ?', ('yes', 'no')),
            Question(f'how many objects are there near the {thing} ?', max_tokens=TEXT_TOKENS),
        ]
    if schema:
        questions.insert(2, DOCUMENT)
    return _different(questions, answerer, config)


def _different(questions: Sequence[Question], answerer: Answerer, config: Config) -> list[Question]:
    """Those whose tokens differ: a small tokenizer may know few of the words."""
    found = {answerer.tokenize(question, config).key: question for question in reversed(questions)}
    return list(reversed(found.values()))
