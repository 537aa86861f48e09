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

"""Turns a question into tokens: the model's own chat template around the pictures and the question.

`[system] [picture 1] ... [live picture] | snapshot | [question] [start of the answer]`: the part before the snapshot is
the same for every question, so its state is reused. A follow-up question pays only for the part behind it.

The template is rendered with two questions, pictures first. What both have in common is the chat, and every other
question is put in its place: whatever the template takes from elsewhere, such as today's date, stays as it was.
"""

import os
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from vlm_reuse_node.errors import ConfigError, InvalidRequestError, ModelError
from vlm_reuse_node.model.chat import PLAIN_QUESTIONS, adds_special_tokens, rendered, template_text, tokenized
from vlm_reuse_node.model.families.base import Family

LONGEST_CHOICE_TOKENS = 256
# Planners ask the same questions again and again: so many texts are tokenized once. Each takes about a millisecond.
REMEMBERED_TEXTS = 256
# What chat templates do with the space around a question; behind a picture some leave the space before it.
TRIMS = str, str.rstrip, str.lstrip, str.strip
# What begins and ends a model's thoughts.
THOUGHTS = (
    ('<think>', '</think>'),
    ('<thinking>', '</thinking>'),
    ('<mm:think>', '</mm:think>'),
    ('[THINK]', '[/THINK]'),
    ('\u25c1think\u25b7', '\u25c1/think\u25b7'),
    ('<|channel>thought', '<channel|>'),
)


class PromptTemplate:
    """A chat with a fixed system text and number of pictures, and a question to be filled in.

    prefix: tokens up to the snapshot, one token per picture (`Family.expand` makes them one per cell).
    thinking: whether texts are answered with thoughts before them. All other answers are given behind closed thoughts.
    """

    def __init__(
        self,
        processor: Any,
        model_config: Any,
        family: Family,
        system: str,
        pictures: int,
        thinking: bool = False,
        older: 'PromptTemplate | None' = None,
    ) -> None:
        """Render the chat with two plain questions, to find its prefix and its special tokens.

        older: the same chat with another number of pictures, whose time the template is told; None: the present one.
        Raises ModelError when the chat template leaves pictures out, has a question before them, or has no thoughts
        where `thinking` wants them; ConfigError for special tokens in `system`.
        """
        self.thinking = thinking
        self._processor, self._model_config, self._family = processor, model_config, family
        self._system, self._pictures = system, pictures
        self._siblings: dict[int, PromptTemplate] = older._siblings if older else {}
        self._now: datetime = older._now if older else datetime.now()
        self._adds_special: bool = older._adds_special if older else adds_special_tokens(processor, model_config)
        self._tokenizer = processor.tokenizer
        self._special: dict[int, str] = {
            index: token.content
            for index, token in self._tokenizer.added_tokens_decoder.items()
            if index != self._tokenizer.unk_token_id
        }
        if (
            family.marker
            and (image := family.marker[1]) >= 0
            and (shown := self._tokenizer.convert_ids_to_tokens(image))
        ):
            self._special[image] = shown
        if (token := self._special_in(system)) is not None:
            raise ConfigError(f"system_prompt holds '{token}', a special token of the model; expected plain text.")
        self._before, self._behind = self._parts(thinking)
        spaced = f' {PLAIN_QUESTIONS[0]} '
        shown = self._rendered(spaced, self._now)
        self._trimmed = next(
            (trim for trim in TRIMS if shown == f'{self._before}{trim(spaced)}{self._behind}'), str.strip
        )
        (ids, slots), (other, other_slots) = map(self._placed, PLAIN_QUESTIONS)
        if pictures > 1 and family.one_picture:
            raise ModelError(
                f'The model sees one picture at a time in mlx-vlm, and {pictures} were to be shown; expected 1 '
                '(history_frames 0).'
            )
        if len(slots) != pictures:
            raise ModelError(
                f"The model's chat template places {len(slots)} of {pictures} pictures; expected all of "
                'them, before the question. Look at chat_template in tokenizer_config.json.'
            )
        self.prefix = ids[: slots[-1]]
        if slots != other_slots or other[: slots[-1]] != self.prefix:
            raise ModelError(
                "The model's chat template has the question before a picture, so that every question would need "
                'another state; expected the pictures first. Look at chat_template in tokenizer_config.json.'
            )
        self._suffix = ids[slots[-1] :]
        self._opened, self._behind_closed = self._closed()
        self._plain_specials = {
            closed: self._specials(self._ids(PLAIN_QUESTIONS[0], closed)) for closed in (False, True)
        }
        self._question = lru_cache(REMEMBERED_TEXTS)(self._question_tokens)
        self._choice = lru_cache(REMEMBERED_TEXTS)(self._choice_tokens)
        self._siblings[pictures] = self

    def of(self, pictures: int) -> 'PromptTemplate':
        """The same chat, rendered at the same time, with so many pictures. Raises as `__init__` does."""
        if (known := self._siblings.get(pictures)) is not None:
            return known
        return PromptTemplate(
            self._processor, self._model_config, self._family, self._system, pictures, self.thinking, self
        )

    def is_current(self) -> bool:
        """Whether the chat template renders the same now: it may hold today's date."""
        now = self._rendered(PLAIN_QUESTIONS[0], datetime.now())
        return now == f'{self._before}{PLAIN_QUESTIONS[0]}{self._behind}'

    def extends(self, shorter: 'PromptTemplate') -> bool:
        """Whether this prompt is the shorter one with more pictures before the snapshot, and nothing else changed."""
        return self.prefix[: len(shorter.prefix)] == shorter.prefix and self._suffix == shorter._suffix

    def question(self, text: str, thinks: bool = True) -> list[int]:
        """Return the tokens behind the snapshot, up to where the answer starts.

        thinks: False closes the thoughts, if the chat template opens them or lets the model do it.
        Raises InvalidRequestError when the text holds one of the model's special tokens: it must never become a
        picture or a turn of the chat.
        """
        return list(self._question(text, not thinks and self._behind_closed != self._behind))

    def choices(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each possible answer.

        Raises InvalidRequestError for an empty choice, a special token, two choices with the same tokens, and a choice
        of more than LONGEST_CHOICE_TOKENS.
        """
        tokens = []
        for text in texts:
            ids = list(self._choice(text))
            if not ids or self._specials(ids) or ids in tokens:
                raise InvalidRequestError(
                    f"To this model the choice '{text}' is empty, a special token or the same as another choice; "
                    'expected choices that differ in words that the model knows.'
                )
            if len(ids) > LONGEST_CHOICE_TOKENS:
                raise InvalidRequestError(
                    f"The choice '{text[:40]}...' has {len(ids)} tokens; expected at most {LONGEST_CHOICE_TOKENS}."
                )
            tokens.append(ids)
        return tokens

    def spoken(self, ids: Sequence[int], goes_on: bool = False) -> list[int]:
        """Return the tokens of a text answer that are no thoughts: those behind them, none while they last.

        goes_on: whether more tokens follow, so that what may become the beginning of a thought is taken for one.
        """
        written = self._tokenizer.decode(ids)
        for begin, end in THOUGHTS:
            if goes_on and begin.startswith(written.lstrip()):
                return []
            if not (written.lstrip().startswith(begin) or (self.thinking and self._opened == end)):
                continue
            if end not in written:
                return []
            first, last = 0, len(ids)  # the thought ends in between
            while last - first > 1:
                middle = (first + last) // 2
                first, last = (first, middle) if end in self._tokenizer.decode(ids[:middle]) else (middle, last)
            return list(ids[last:])
        return list(ids)

    def _question_tokens(self, text: str, closed: bool) -> list[int]:
        self._refuse_special(text, 'The question')
        ids = self._ids(text, closed)
        if ids[: len(self.prefix)] != self.prefix or self._specials(ids) != self._plain_specials[closed]:
            raise InvalidRequestError('The tokenizer makes special tokens of the question; expected plain text.')
        return ids[len(self.prefix) :]

    def _choice_tokens(self, text: str) -> list[int]:
        self._refuse_special(text, 'A choice')
        return list(self._tokenizer(text.strip(), add_special_tokens=False)['input_ids'])

    def _parts(self, thinking: bool) -> tuple[str, str]:
        """The chat before and behind the question."""
        one, other = (self._rendered(question, self._now, thinking) for question in PLAIN_QUESTIONS)
        before = os.path.commonprefix([one, other])
        behind = os.path.commonprefix([one[::-1], other[::-1]])[::-1]
        if (one, other) != tuple(f'{before}{question}{behind}' for question in PLAIN_QUESTIONS):
            raise ModelError(
                "The model's chat template does not hold the question once, as it is; expected a template that "
                'puts the text of the message into the chat. Look at chat_template in tokenizer_config.json.'
            )
        return before, behind

    def _closed(self) -> tuple[str, str]:
        """What ends the thought that the chat template opens, '' where it opens none; and the chat with it closed.

        Raises ModelError for a template without thoughts, where there should be some.
        """
        opened, closing = _open_thought(self._behind)
        if opened or not self.thinking:
            return opened, self._behind + closing
        without = self._parts(thinking=False)
        if without[1] != self._behind:  # Qwen3 closes an empty thought, and Gemma 4
            return '', without[1]
        if without[0] != self._before:  # the small Gemma 4 are told in the system turn alone
            source = template_text(self._processor)
            for begin, end in THOUGHTS:
                if begin in source or end in source:
                    return '', f'{self._behind}{begin}\n{end}'
        raise ModelError(
            "thinking is true, and the model's chat template has no thoughts to switch on (enable_thinking); expected "
            'false, or a model that can think.'
        )

    def _rendered(self, question: str, now: datetime, thinking: bool | None = None) -> str:
        """The chat with a question behind the pictures, as text, as if it were asked at that time."""
        thinks = self.thinking if thinking is None else thinking
        try:
            return rendered(self._processor, self._model_config, question, self._pictures, self._system, now, thinks)
        except ValueError as error:
            raise ModelError(
                f"The model's chat template takes no {self._pictures} pictures ({error}); expected a model that "
                'sees as many pictures at once as are kept (history_frames).'
            ) from error

    def _placed(self, question: str) -> tuple[list[int], list[int]]:
        """The tokens of the chat with a question, and where its pictures end."""
        ids = self._ids(question, False)
        return ids, self._family.slots(ids)

    def _ids(self, question: str, closed: bool) -> list[int]:
        text = f'{self._before}{self._trimmed(question)}{self._behind_closed if closed else self._behind}'
        return tokenized(self._tokenizer, text, self._adds_special, self._family.marker)

    def _specials(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token in self._special]

    def _special_in(self, text: str) -> str | None:
        if self._family.marker and (marked := self._family.marker[0].search(text)):
            return marked[0]
        return next((token for token in self._special.values() if token in text), None)

    def _refuse_special(self, text: str, what: str) -> None:
        if (token := self._special_in(text)) is not None:
            raise InvalidRequestError(f"{what} holds '{token}', a special token of the model; expected plain text.")


def _open_thought(behind: str) -> tuple[str, str]:
    """What ends the thought that the start of an answer opens, and what closes it, as templates write an empty one."""
    for begin, end in THOUGHTS:
        if behind.rstrip().endswith(begin):
            space = behind[len(behind.rstrip()) :]
            return end, f'{space}{end}{2 * space or chr(10)}'
    return '', ''
