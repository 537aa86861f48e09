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

"""Answers that follow a JSON schema: before every token a mask allows only those that can still lead to a document.

The grammars are those of llguidance, on which mlx-vlm depends. The logits processor of mlx-vlm runs on Metal alone, so
the mask is applied here.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

import llguidance
import llguidance.hf
import mlx.core as mx
import numpy as np

from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model.sampling import Sampler

# Every JSON reader reads whole numbers up to here alike. Larger ones can end the process in llguidance 1.9.
LARGEST_NUMBER = 2**53


class JsonSchemas:
    """Compiles schemas for one tokenizer."""

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int]) -> None:
        """Prepare. The first schema reads the vocabulary, which takes about a second for a large one.

        tokenizer: a fast one of transformers. stop_ids: tokens that end an answer.
        """
        self._tokenizer = tokenizer
        self._stop_ids = list(stop_ids)
        self._vocabulary: llguidance.LLTokenizer | None = None

    def grammar(self, schema: str) -> str:
        """Compile a schema.

        Raises InvalidRequestError for a text that is no schema, for a keyword that cannot be enforced, and for a model
        whose tokens cannot write JSON.
        """
        try:
            content = json.loads(schema)
            _check_numbers(content)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f'json_schema is not JSON ({error}); expected a JSON schema.') from error
        if not isinstance(content, dict):
            raise InvalidRequestError('json_schema is no JSON object; expected one, for example {"type": "object"}.')
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                schema,
                # White space between the parts could grow for ever, so a document can be written in one way only.
                overrides={'whitespace_flexible': False, 'item_separator': ', ', 'key_separator': ': '},
            )
            matcher = self._matcher(grammar)
            matcher.compute_bitmask()
            if matcher.is_error():
                raise ValueError(f'no document follows it ({_one_line(matcher.get_error())})')
        except ValueError as error:
            raise InvalidRequestError(
                f'json_schema cannot be followed: {_one_line(error)}. Expected a schema that does without it.'
            ) from error
        return grammar

    def sampler(self, grammar: str, sample: Sampler) -> 'JsonSampler':
        """Return a sampler of one answer: `sample` picks among the tokens that the grammar allows."""
        return JsonSampler(self._matcher(grammar), self._read_vocabulary(), self._stop_ids, sample)

    @staticmethod
    def check(text: str) -> None:
        """Raise InvalidRequestError for a document that not all JSON readers read alike.

        That is one with a key that comes twice (an escaped second one evades the schema of its value), with a number
        too large for a float, or nested too deeply. A grammar allows these where its schema is open.
        """
        try:
            json.loads(text, object_pairs_hook=_object, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f'The answer is a document that not every JSON reader accepts ({_one_line(error)}); close the '
                'json_schema (additionalProperties: false, minimum and maximum).'
            ) from error

    def _matcher(self, grammar: str) -> llguidance.LLMatcher:
        matcher = llguidance.LLMatcher(self._read_vocabulary(), grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def _read_vocabulary(self) -> llguidance.LLTokenizer:
        if self._vocabulary is None:
            try:
                self._vocabulary = llguidance.hf.from_tokenizer(self._tokenizer, eos_token=self._stop_ids)
            except Exception as error:
                raise InvalidRequestError(
                    f'This model cannot follow a json_schema: no JSON can be put together from '
                    f'its tokens ({_one_line(error)}). Give choices instead.'
                ) from error
        return self._vocabulary


class JsonSampler(Sampler):
    """Picks the tokens of one document, one after another."""

    def __init__(
        self,
        matcher: llguidance.LLMatcher,
        vocabulary: llguidance.LLTokenizer,
        stop_ids: Iterable[int],
        sample: Sampler,
    ) -> None:
        """Start before the first token."""
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._stop_ids = set(stop_ids)
        self._sample = sample

    def __call__(self, logits: mx.array) -> mx.array:
        """Pick from logits, mx (vocabulary,). Raises InvalidRequestError when the document outgrows every limit."""
        known = self._allowed()[: logits.shape[0]]
        allowed = np.zeros(logits.shape[0], bool)
        allowed[: len(known)] = known
        if self._matcher.is_error() or not allowed.any():
            raise InvalidRequestError(
                f'json_schema leads to a document that is too complex to continue '
                f'({_one_line(self._matcher.get_error())}); expected a simpler schema.'
            )
        return self._sample(mx.where(mx.array(allowed), logits, -mx.inf))

    def accept(self, token: int) -> None:
        """Continue the document with the token."""
        self._sample.accept(token)
        self._matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """Whether the tokens are a document that can only end here; 87 is not, because it may become 872."""
        if self._matcher.stop_reason() == 'EndOfSentence':
            return True
        return self._matcher.is_accepting() and set(np.flatnonzero(self._allowed())) <= self._stop_ids

    def _allowed(self) -> np.ndarray:
        """Which tokens may come next: bool, one for each token of the grammar's vocabulary and some more."""
        return np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder='little').astype(bool)

    def text(self, ids: list[int]) -> str:
        """Return the document, character for character."""
        return self._vocabulary.decode_str(ids)


def _check_numbers(content: Any, is_schema: bool = True) -> None:
    """Refuse numbers beyond LARGEST_NUMBER, and exclusive bounds, which llguidance enforces for whole numbers only.

    content: JSON. is_schema: False for a plain value in a schema, such as that of `const`.
    """
    if isinstance(content, (int, float)) and not -LARGEST_NUMBER <= content <= LARGEST_NUMBER:
        raise InvalidRequestError(
            f'json_schema has the number {content}; expected up to {LARGEST_NUMBER} (2 to the 53rd).'
        )
    if isinstance(content, list):
        for part in content:
            _check_numbers(part, is_schema)
    elif isinstance(content, dict):
        if is_schema:
            _check_bounds(content)
        for name, part in content.items():
            if not is_schema or name not in ('default', 'examples'):  # these do not restrict a document
                _check_numbers(part, is_schema and name not in ('enum', 'const'))


def _check_bounds(schema: dict[str, Any]) -> None:
    kinds = schema.get('type', 'number')
    if 'number' not in (kinds if isinstance(kinds, list) else [kinds]):
        return
    for name in ('exclusiveMinimum', 'exclusiveMaximum'):
        if isinstance(schema.get(name), (int, float)) and not isinstance(schema[name], bool):
            raise InvalidRequestError(
                f'json_schema has {name} for numbers with a fraction, which cannot be enforced; '
                f'expected {name.replace("exclusiveM", "m")}, or the type integer beside it.'
            )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these keys and values. Raises ValueError for a key that comes twice."""
    names = [name for name, _ in pairs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'it has {repeated[0]!r} twice')
    return dict(pairs)


def _finite(text: str) -> float:
    """Read a number. Raises ValueError for one that is too large for a float."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f'{text} is too large for a float')
    return number


def _one_line(error: object) -> str:
    """The text of an error in one line of at most 200 characters, without llguidance's state behind it."""
    return ' '.join(str(error).partition('<state>')[0].split())[:200].rstrip('.')
