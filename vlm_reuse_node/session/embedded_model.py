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

"""What the embedded model cannot do: it knows generated tabletops and a few words."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.scene.frame import TABLETOP_FRAME
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import LONGEST_QUESTION_CHARS, Question

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAME = 'tabletop'
MEANS_NOTHING = 'The embedded model (tabletop) knows generated tabletops only; these answers mean nothing.'
MOST_NAMED = 5
_TOKENIZER = Path(__file__).parents[1] / 'demo' / 'tabletop_model' / 'tokenizer.json'


def means_nothing(model: str, frame_id: str) -> bool:
    """Whether the embedded model is to answer about a picture that is no generated tabletop, by its frame_id."""
    return model == NAME and frame_id != TABLETOP_FRAME


def marked(answer: Answer) -> Answer:
    """Say in the message of an answer that it means nothing, where that is so."""
    if answer.status is not Status.OK or not means_nothing(answer.model, answer.frame_id):
        return answer
    return replace(answer, message=f'{MEANS_NOTHING} {answer.message}'.rstrip())


def check_words(model: str, question: Question) -> None:
    """Refuse words that the embedded model does not know: it would answer as if they were not there.

    Raises InvalidRequestError that names them.
    """
    if model != NAME:
        return
    unknown = dict.fromkeys(word for text in (question.text, *question.choices) for word in unknown_words(text))
    if unknown:
        named = ', '.join(f"'{word}'" for word in list(unknown)[:MOST_NAMED])
        more = f' and {len(unknown) - MOST_NAMED} more' if len(unknown) > MOST_NAMED else ''
        raise InvalidRequestError(
            f'The embedded model (tabletop) does not know {named}{more}; ask about the colour, shape, number or place '
            'of objects on the table, or load another model.'
        )


def unknown_words(text: str) -> list[str]:
    """The words of a text that the embedded model does not know, in their order; none of one that is too long."""
    if len(text) > LONGEST_QUESTION_CHARS:
        return []
    encoded = _tokenizer().encode(text, add_special_tokens=False)
    spans = (span for span, token in zip(encoded.offsets, encoded.tokens, strict=True) if token == '[UNK]')
    return [text[first:end] for first, end in spans]


@cache
def _tokenizer() -> 'Tokenizer':
    from tokenizers import Tokenizer  # only the embedded model needs it

    return Tokenizer.from_file(str(_TOKENIZER))
