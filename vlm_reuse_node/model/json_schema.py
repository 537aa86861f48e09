"""Free text that follows a JSON schema: at every token only what can still become such a document is allowed.

The grammars are llguidance's, which mlx-vlm depends on; mlx-vlm's own logits processor runs on Metal alone, so the mask
is applied here.
"""

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import llguidance
import llguidance.hf
import mlx.core as mx
import numpy as np

from vlm_reuse_node.errors import InvalidRequestError

# Whole numbers up to here are the same in every JSON reader; beyond, llguidance 1.9 can end the process.
MOST = 2**53

# A document has one way to be written: white space between its parts would let it grow for ever.
_COMPACT = {'whitespace_flexible': False, 'item_separator': ', ', 'key_separator': ': '}


class JsonSchemas:
    """Compiles schemas for one tokenizer."""

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int]):
        """Prepare; a large vocabulary is read at the first schema, a second or so.

        tokenizer: transformers' fast one. stop_ids: tokens that end an answer.
        """
        self._tokenizer, self._stop_ids = tokenizer, list(stop_ids)
        self._vocabulary: llguidance.LLTokenizer | None = None

    def grammar(self, schema: str) -> str:
        """Compile a schema.

        Raises InvalidRequestError for a text that is no schema, a keyword that cannot be held to, and a model whose
        tokens cannot write JSON.
        """
        try:
            content = json.loads(schema)
            _check_numbers(content)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f'json_schema is not JSON ({error}); expected a JSON schema.') from error
        if not isinstance(content, dict):
            raise InvalidRequestError('json_schema is no JSON object; expected one, such as {"type": "object"}.')
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_COMPACT)
            writer = self._writer(grammar)
            writer.compute_bitmask()
            if writer.is_error():
                raise ValueError(f'no document follows it ({_one_line(writer.get_error())})')
        except ValueError as error:
            raise InvalidRequestError(
                f'json_schema cannot be followed: {_one_line(error)}. Expected a schema without what is named here.'
            ) from error
        return grammar

    def sampler(self, grammar: str, sample: Callable[[mx.array], int]) -> 'JsonSampler':
        """Have `sample` pick among the tokens that the grammar allows; for one answer."""
        return JsonSampler(self._writer(grammar), self._vocabulary, self._stop_ids, sample)

    @staticmethod
    def check(text: str) -> None:
        """Raises InvalidRequestError for a document that JSON's readers would not all read alike.

        Such are a key that is written twice, the second time perhaps with escapes and past the schema of its value,
        a number beyond all floats, and nesting without end; the grammar lets them through where a schema is open.
        """
        try:
            json.loads(text, object_pairs_hook=_object, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f'The answer is no document that every reader takes ({_one_line(error)}); close '
                'the json_schema (additionalProperties: false, minimum and maximum).'
            ) from error

    def _writer(self, grammar):
        matcher = llguidance.LLMatcher(self._read_vocabulary(), grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def _read_vocabulary(self):
        if self._vocabulary is None:
            try:
                self._vocabulary = llguidance.hf.from_tokenizer(self._tokenizer, eos_token=self._stop_ids)
            except Exception as error:
                raise InvalidRequestError(
                    f'This model cannot follow a json_schema: no JSON can be put together from '
                    f'its tokens ({_one_line(error)}). Give choices instead.'
                ) from error
        return self._vocabulary


class JsonSampler:
    """Picks the tokens of one document, one after the other."""

    def __init__(
        self,
        matcher: llguidance.LLMatcher,
        vocabulary: llguidance.LLTokenizer,
        stop_ids: Iterable[int],
        sample: Callable[[mx.array], int],
    ):
        """Start before the first token."""
        self._matcher, self._vocabulary, self._stop_ids, self._sample = matcher, vocabulary, set(stop_ids), sample

    def __call__(self, logits: mx.array) -> int:
        """Pick from logits, mx (vocabulary,). Raises InvalidRequestError when the document outgrows every limit."""
        allowed, known = np.zeros(logits.shape[0], bool), self._allowed()[: logits.shape[0]]
        allowed[: len(known)] = known
        if self._matcher.is_error() or not allowed.any():
            raise InvalidRequestError(
                f'json_schema leads to a document that is too complex to go on with '
                f'({_one_line(self._matcher.get_error())}); expected a simpler one.'
            )
        token = self._sample(mx.where(mx.array(allowed), logits, -mx.inf))
        self._matcher.consume_token(token)
        return token

    @property
    def is_complete(self) -> bool:
        """Whether the tokens picked so far are a whole document that can only end here: 87 may be the start of 872."""
        if self._matcher.stop_reason() == 'EndOfSentence':
            return True
        return self._matcher.is_accepting() and set(np.flatnonzero(self._allowed())) <= self._stop_ids

    def _allowed(self):
        """Which tokens may come next: (at least the known ones,) bool."""
        return np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder='little').astype(bool)

    def text(self, ids: list[int]) -> str:
        """The document, character for character."""
        return self._vocabulary.decode_str(ids)


def _check_numbers(content, is_schema=True):
    """Refuse numbers beyond MOST, and exclusive bounds that llguidance holds to for whole numbers alone."""
    if isinstance(content, (int, float)) and not -MOST <= content <= MOST:
        raise InvalidRequestError(f'json_schema has the number {content}; expected up to {MOST} (2 to the 53rd).')
    if isinstance(content, list):
        for part in content:
            _check_numbers(part, is_schema)
    elif isinstance(content, dict):
        if is_schema:
            _check_bounds(content)
        for name, part in content.items():
            if not is_schema or name not in ('default', 'examples'):  # which say nothing about what is valid
                _check_numbers(part, is_schema and name not in ('enum', 'const'))


def _check_bounds(schema):
    kinds = schema.get('type', 'number')
    if 'number' not in (kinds if isinstance(kinds, list) else [kinds]):
        return
    for name in ('exclusiveMinimum', 'exclusiveMaximum'):
        if isinstance(schema.get(name), (int, float)) and not isinstance(schema[name], bool):
            raise InvalidRequestError(
                f'json_schema has {name} for numbers with a fraction, which cannot be held to; '
                f'expected {name.replace("exclusiveM", "m")}, or the type integer beside it.'
            )


def _object(pairs):
    """An object as it was written. Raises ValueError for a key that comes twice."""
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'it has {twice[0]!r} twice')
    return dict(pairs)


def _finite(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f'{text} is beyond all floats')
    return number


def _one_line(error):
    return ' '.join(str(error).partition('<state>')[0].split())[:200].rstrip('.')
