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

"""The record of a question, and its checks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError

LONGEST_QUESTION_CHARS = 100_000
MOST_CHOICES = 32
LONGEST_SCHEMA_CHARS = 10_000
LONGEST_ANSWER_TOKENS = 4096


@dataclass(frozen=True)
class Question:
    """A planner's question about a camera's newest picture.

    choices: the answer is one of them, scored by logits; (): free text.
    json_schema: JSON schema that the text follows; '': none.
    max_tokens: 0 takes the configured default.
    max_age_s: largest age of the picture that the answer comes from; 0 takes the configured default.
    max_lag_s: how long the state may have differed from the newest picture; 0 takes the configured default,
        which is the newest picture itself.
    timeout_s: time limit from the question to the answer; 0 takes the configured default.
    force_refresh: answer from the newest picture itself, not from an older one that looks the same.
    """

    text: str
    choices: tuple[str, ...] = ()
    json_schema: str = ''
    max_tokens: int = 0
    max_age_s: float = 0.0
    max_lag_s: float = 0.0
    timeout_s: float = 0.0
    force_refresh: bool = False

    def completed(self, config: Config) -> 'Question':
        """The same question with every 0 replaced by the configured default.

        Raises InvalidRequestError for a value of a wrong type; a text that is empty or too long; choices that are
        empty, equal, one alone or too many; a json_schema that is too long or comes with choices; a negative number,
        or NaN.
        `PromptTemplate` refuses special tokens, and `JsonSchemas` refuses schemas that it does not support.
        """
        _check_types(self)
        _check_text(self.text)
        _check_choices(self.choices)
        _check_schema(self)
        for name in ('max_tokens', 'max_age_s', 'max_lag_s', 'timeout_s'):
            value = getattr(self, name)
            if math.isnan(value) or value < 0:
                raise InvalidRequestError(f'{name} is {value}; expected 0 (the configured default) or more.')
        if self.max_tokens > LONGEST_ANSWER_TOKENS:
            raise InvalidRequestError(f'max_tokens is {self.max_tokens}; expected at most {LONGEST_ANSWER_TOKENS}.')
        return replace(
            self,
            max_tokens=self.max_tokens or config.max_tokens,
            max_age_s=self.max_age_s or config.max_age_s,
            max_lag_s=self.max_lag_s or config.max_lag_s,
            timeout_s=self.timeout_s or config.timeout_s,
        )

    def least_confidence(self, config: Config) -> float:
        """The probability that a patched state's answer must have; 1: only whole states answer this question.

        A document's probability says little: many of its tokens are forced by the schema.
        """
        if self.json_schema:
            return 1.0
        return config.min_confidence if self.choices else config.min_text_confidence


def question_of(question: Question | str, choices: Sequence[str] = ()) -> Question:
    """Make a question of its text. choices: take the place of its own ones; (): they stay."""
    given: Any = choices if isinstance(choices, str) else tuple(choices)  # a single text is refused by `completed`
    asked = question if isinstance(question, Question) else Question(question)
    return replace(asked, choices=given) if given else asked


def _check_types(question: Question) -> None:
    if not isinstance(question.choices, tuple):
        raise InvalidRequestError(f'choices is a {type(question.choices).__name__}; expected a tuple of texts.')
    if not isinstance(question.max_tokens, int):
        raise InvalidRequestError(f'max_tokens is {question.max_tokens!r}; expected a whole number.')
    numbers = question.max_tokens, question.max_age_s, question.max_lag_s, question.timeout_s
    if not all(isinstance(text, str) for text in (question.text, question.json_schema, *question.choices)):
        raise InvalidRequestError('The question, its json_schema or a choice is not a text; expected strings.')
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise InvalidRequestError(f'max_tokens, max_age_s, max_lag_s and timeout_s are {numbers}; expected numbers.')


def _check_text(text: str) -> None:
    if not text.strip():
        raise InvalidRequestError('The question is empty; expected a sentence about the scene.')
    if len(text) > LONGEST_QUESTION_CHARS:
        raise InvalidRequestError(
            f'The question has {len(text)} characters; expected at most {LONGEST_QUESTION_CHARS}.'
        )
    if any('\ud800' <= letter <= '\udfff' for letter in text):
        raise InvalidRequestError('The text contains an unpaired surrogate; expected valid Unicode.')


def _check_schema(question: Question) -> None:
    if question.json_schema and question.choices:
        raise InvalidRequestError('The question has both choices and a json_schema; expected at most one of them.')
    if len(question.json_schema) > LONGEST_SCHEMA_CHARS:
        raise InvalidRequestError(
            f'json_schema has {len(question.json_schema)} characters; expected at most {LONGEST_SCHEMA_CHARS}.'
        )


def _check_choices(choices: tuple[str, ...]) -> None:
    if len(choices) == 1:
        raise InvalidRequestError(
            f'The only choice is {choices[0]!r}, so it is the answer to any question; expected two or more, or none.'
        )
    if len(choices) > MOST_CHOICES:
        raise InvalidRequestError(f'The question has {len(choices)} choices; expected at most {MOST_CHOICES}.')
    for choice in choices:
        if not choice.strip():
            raise InvalidRequestError('A choice is empty; expected a text for each.')
        _check_text(choice)
    if len({choice.strip() for choice in choices}) != len(choices):
        raise InvalidRequestError(f'The choices {list(choices)} are not all different; expected each choice once.')
