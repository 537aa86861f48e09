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
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from mlx_vlm.prompt_utils import apply_chat_template

from vlm_reuse_node.errors import ConfigError, InvalidRequestError, ModelError
from vlm_reuse_node.model.families.base import Family

PLAIN_QUESTION = 'what is this?'
LONGEST_CHOICE_TOKENS = 256
# Planners ask the same questions again and again: so many texts are tokenized once. Each takes about a millisecond.
REMEMBERED_TEXTS = 256


class PromptTemplate:
    """A chat with a fixed system text and number of pictures, and a question to be filled in.

    prefix: tokens up to the snapshot, one token per picture (`Family.expand` makes them one per cell).
    """

    def __init__(self, processor: Any, model_config: Any, family: Family, system: str, pictures: int) -> None:
        """Render the chat once with a plain question, to find its prefix and its special tokens.

        Raises ModelError when the chat template leaves pictures out, ConfigError for special tokens in `system`.
        """
        self._processor = processor
        self._model_config = model_config
        self._system = system
        self._pictures = pictures
        self._tokenizer = processor.tokenizer
        self._special: dict[int, str] = {
            index: token.content
            for index, token in self._tokenizer.added_tokens_decoder.items()
            if index != self._tokenizer.unk_token_id
        }
        if (token := self._special_in(system)) is not None:
            raise ConfigError(f"system_prompt holds '{token}', a special token of the model; expected plain text.")
        ids = self._ids(PLAIN_QUESTION)
        slots = family.slots(ids)
        if len(slots) != pictures:
            raise ModelError(
                f"The model's chat template places {len(slots)} of {pictures} pictures; expected all of "
                'them, before the question. Look at chat_template in tokenizer_config.json.'
            )
        self.prefix = ids[: slots[-1]]
        self._suffix = ids[slots[-1] :]
        self._plain_specials = self._specials(ids)
        self._question = lru_cache(REMEMBERED_TEXTS)(self._question_tokens)
        self._choice = lru_cache(REMEMBERED_TEXTS)(self._choice_tokens)

    def extends(self, shorter: 'PromptTemplate') -> bool:
        """Whether this prompt is the shorter one with more pictures before the snapshot, and nothing else changed."""
        return self.prefix[: len(shorter.prefix)] == shorter.prefix and self._suffix == shorter._suffix

    def question(self, text: str) -> list[int]:
        """Return the tokens behind the snapshot, up to where the answer starts.

        Raises InvalidRequestError when the text holds one of the model's special tokens: it must never become a
        picture or a turn of the chat.
        """
        return list(self._question(text))

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

    def _question_tokens(self, text: str) -> list[int]:
        self._refuse_special(text, 'The question')
        ids = self._ids(text)
        if ids[: len(self.prefix)] != self.prefix or self._specials(ids) != self._plain_specials:
            raise InvalidRequestError('The tokenizer makes special tokens of the question; expected plain text.')
        return ids[len(self.prefix) :]

    def _choice_tokens(self, text: str) -> list[int]:
        self._refuse_special(text, 'A choice')
        return list(self._tokenizer(text.strip(), add_special_tokens=False)['input_ids'])

    def _ids(self, question: str) -> list[int]:
        chat = [{'role': 'system', 'content': self._system}] if self._system else []
        chat.append({'role': 'user', 'content': question})
        text = apply_chat_template(self._processor, self._model_config, chat, num_images=self._pictures)
        return list(self._tokenizer(text)['input_ids'])

    def _specials(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token in self._special]

    def _special_in(self, text: str) -> str | None:
        return next((token for token in self._special.values() if token in text), None)

    def _refuse_special(self, text: str, what: str) -> None:
        if (token := self._special_in(text)) is not None:
            raise InvalidRequestError(f"{what} holds '{token}', a special token of the model; expected plain text.")
