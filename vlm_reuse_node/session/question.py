"""What a planner asks, and the checks that a question has to pass."""

import math
from dataclasses import dataclass, replace

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError

LONGEST_ANSWER_TOKENS = 4096


@dataclass(frozen=True)
class Question:
    """What a planner asks about a camera's newest picture.

    choices: when given, the answer is one of them, scored by logits.
    json_schema: JSON schema that the text will follow; '': none.
    max_tokens: 0 takes the configured default.
    max_age_s: the oldest picture that may be answered from; 0 takes the configured default.
    timeout_s: from asking to the answer; 0 takes the configured default.
    """

    text: str
    choices: tuple[str, ...] = ()
    json_schema: str = ''
    max_tokens: int = 0
    max_age_s: float = 0.0
    timeout_s: float = 0.0
    force_refresh: bool = False


def checked(question: Question, config: Config) -> Question:
    """Return the question with every 0 replaced by the configured default.

    Raises InvalidRequestError for a value of a wrong type, for a text that is empty or too long, for too many, empty or
    duplicate choices, for a json_schema that is too long or beside choices, and for numbers that are negative or not a
    number. Special tokens are found by `prompt.PromptTemplate`, schemas that cannot be followed by `json_schema.py`.
    """
    _check_types(question)
    _check_text(question.text, config.max_question_chars)
    _check_choices(question.choices, config)
    _check_schema(question, config)
    for name in ('max_tokens', 'max_age_s', 'timeout_s'):
        value = getattr(question, name)
        if math.isnan(value) or value < 0:
            raise InvalidRequestError(f'{name} is {value}; expected 0 (the configured default) or more.')
    if question.max_tokens > LONGEST_ANSWER_TOKENS:
        raise InvalidRequestError(f'max_tokens is {question.max_tokens}; expected at most {LONGEST_ANSWER_TOKENS}.')
    return replace(
        question,
        max_tokens=question.max_tokens or config.max_tokens,
        max_age_s=question.max_age_s or config.max_age_s,
        timeout_s=question.timeout_s or config.timeout_s,
    )


def _check_types(question):
    numbers = question.max_tokens, question.max_age_s, question.timeout_s
    if not all(isinstance(text, str) for text in (question.text, question.json_schema, *question.choices)):
        raise InvalidRequestError('The question, its json_schema or a choice is no text; expected strings.')
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise InvalidRequestError(f'max_tokens, max_age_s and timeout_s are {numbers}; expected numbers.')


def _check_text(text, limit):
    if not text.strip():
        raise InvalidRequestError('The question is empty; expected a sentence about the scene.')
    if len(text) > limit:
        raise InvalidRequestError(
            f'The question has {len(text)} characters; expected at most {limit} (max_question_chars).'
        )
    if any('\ud800' <= letter <= '\udfff' for letter in text):
        raise InvalidRequestError('The question holds half a surrogate pair; expected valid Unicode text.')


def _check_schema(question, config):
    if question.json_schema and question.choices:
        raise InvalidRequestError('The question has choices and a json_schema; expected one of them.')
    if len(question.json_schema) > config.max_schema_chars:
        raise InvalidRequestError(
            f'json_schema has {len(question.json_schema)} characters; expected at most '
            f'{config.max_schema_chars} (max_schema_chars).'
        )


def _check_choices(choices, config):
    if len(choices) > config.max_choices:
        raise InvalidRequestError(
            f'The question has {len(choices)} choices; expected at most {config.max_choices} (max_choices).'
        )
    for choice in choices:
        if not choice.strip():
            raise InvalidRequestError('A choice is empty; expected a text for each.')
        _check_text(choice, config.max_question_chars)
    if len({choice.strip() for choice in choices}) != len(choices):
        raise InvalidRequestError(f'The choices {list(choices)} are not all different; expected each one once.')
