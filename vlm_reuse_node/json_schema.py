"""Free text that follows a JSON schema: at every token only what can still become such a document is allowed.

The grammars are llguidance's, which mlx-vlm depends on; mlx-vlm's own logits processor runs on Metal alone, so the mask
is applied here.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

import llguidance
import llguidance.hf
import mlx.core as mx
import numpy as np

from vlm_reuse_node.errors import InvalidRequestError

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
            is_object = isinstance(json.loads(schema), dict)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f'json_schema is not JSON ({error}); expected a JSON schema.') from error
        if not is_object:
            raise InvalidRequestError('json_schema is no JSON object; expected one, such as {"type": "object"}.')
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_COMPACT)
            writer = self._writer(grammar)
            writer.compute_bitmask()
            if writer.is_error():
                raise ValueError(f'no document follows it ({_one_line(writer.get_error())})')
        except ValueError as error:
            raise InvalidRequestError(f'json_schema cannot be followed: {_one_line(error)}. Expected a schema without '
                                      'what is named here.') from error
        return grammar

    def sampler(self, grammar: str, sample: Callable[[mx.array], int]) -> 'JsonSampler':
        """Have `sample` pick among the tokens that the grammar allows; for one answer."""
        return JsonSampler(self._writer(grammar), self._vocabulary, sample)

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
                raise InvalidRequestError(f'This model cannot follow a json_schema: no JSON can be put together from '
                                          f'its tokens ({_one_line(error)}). Give choices instead.') from error
        return self._vocabulary


class JsonSampler:
    """Picks the tokens of one document, one after the other."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: llguidance.LLTokenizer,
                 sample: Callable[[mx.array], int]):
        """Start before the first token."""
        self._matcher, self._vocabulary, self._sample = matcher, vocabulary, sample

    def __call__(self, logits: mx.array) -> int:
        """Pick from logits, mx (vocabulary,). Raises InvalidRequestError when the document outgrows every limit."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.zeros(logits.shape[0], bool)
        known = np.unpackbits(bits, bitorder='little')[:logits.shape[0]].astype(bool)
        allowed[:len(known)] = known
        if self._matcher.is_error() or not allowed.any():
            raise InvalidRequestError(f'json_schema leads to a document that is too complex to go on with '
                                      f'({_one_line(self._matcher.get_error())}); expected a simpler one.')
        token = self._sample(mx.where(mx.array(allowed), logits, -mx.inf))
        self._matcher.consume_token(token)
        return token

    @property
    def is_complete(self) -> bool:
        """Whether the tokens picked so far are a whole document."""
        return self._matcher.is_accepting() or self._matcher.stop_reason() == 'EndOfSentence'

    def text(self, ids: list[int]) -> str:
        """The document, character for character."""
        return self._vocabulary.decode_str(ids)


def _one_line(error):
    return ' '.join(str(error).partition('<state>')[0].split())[:200].rstrip('.')
