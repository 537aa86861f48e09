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

"""Where pictures are in the prompts of a model of the generic family, as its own processor puts them there."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model.chat import processed, rendered, tokenized
from vlm_reuse_node.model.families.kept_positions import KeptPositions
from vlm_reuse_node.model.families.picture_tokens import PictureTokens, TokenSpan

# How chat templates mark a picture in plain text: LLaVA's kin and InternVL-chat, Phi, and ERNIE.
MARKERS = ('<image>', r'<\|image_\d+\|>', r'<\|image@placeholder\|>')


class PicturePrompts:
    """The part of the generic `Family` that knows tokens. It sets the attributes once it has seen a small picture."""

    marker: tuple[re.Pattern[str], int] | None = None
    _model: Any
    _processor: Any
    _type: str
    _image_token: int | None
    _placeholder: int
    _adds_special: bool
    _text: str  # a chat with one picture
    _plain: list[int]  # its tokens, with the placeholder
    _each: int  # rows that the model makes of one image token
    _tokens: PictureTokens
    _kept: KeptPositions | None = None  # of a model that takes positions from its cache: None

    def slots(self, ids: Sequence[int]) -> list[int]:
        """Right behind each picture's last token, its closing separators too."""
        return self._tokens.slots(ids)

    def expand(self, ids: list[int], grids: Sequence[TokenSpan]) -> list[int]:
        """Each placeholder becomes its picture's tokens."""
        return self._tokens.expand(ids, grids)

    def positions(self, ids: list[int], grids: Sequence[TokenSpan]) -> np.ndarray:
        """Every token counts one, unless the model has a rule of its own."""
        return self._kept.of(ids, grids) if self._kept else self.text_positions(0, len(ids))

    def text_positions(self, start: int, count: int) -> np.ndarray:
        """Counting up, the same on all axes."""
        if self._kept:
            return self._kept.of_text(start, count)
        return np.arange(start, start + count, dtype=np.int32)[None]

    def cells(self, ids: Sequence[int]) -> np.ndarray:
        """Indices of the image tokens, (cells,)."""
        return self._tokens.cells(ids)

    def _processed(self, *pictures: np.ndarray) -> dict[str, Any]:
        """All that the processor returns for a chat with these pictures, as `mlx_vlm.generate` calls it."""
        text = self._text if len(pictures) == 1 else rendered(self._processor, self._model.config, 'a', len(pictures))
        return processed(self._processor, self._model.config, text, pictures)

    def _tokenized(self, text: str) -> list[int]:
        return tokenized(self._processor.tokenizer, text, self._adds_special, self.marker)

    def _span(self, inputs: dict[str, Any]) -> tuple[int, ...]:
        """The tokens in the placeholder's place, in the chat with a picture."""
        ids = np.array(inputs['input_ids'])[0].tolist()
        ids = self._with_rows(ids)
        before = self._plain.index(self._placeholder)
        after = len(ids) - (len(self._plain) - before - 1)
        span = tuple(ids[before:after])
        if ids[:before] + [self._placeholder] + ids[after:] != self._plain or self._image_token not in span:
            self._refuse('its processor changes more of a chat than the tokens of the picture')
        return span

    def _find_placeholder(self) -> int:
        """The token for a whole picture in the chat template."""
        names = [getattr(self._processor, name, None) for name in ('image_token', 'boi_token')]
        ids = [self._processor.tokenizer.convert_tokens_to_ids(name) for name in names if isinstance(name, str)]
        found = [token for token in (self._image_token, *ids) if self._plain.count(token) == 1]
        if self._image_token is not None and not found:
            for marker in map(re.compile, MARKERS):
                if len(marker.findall(self._text)) == 1:
                    self.marker = marker, self._image_token
                    self._plain = self._tokenized(self._text)
                    return self._image_token
        if self._image_token is None or not found:
            self._refuse('its chat template has no single token for a picture')
        return found[0]

    def _repeated_token(self, inputs: dict[str, Any]) -> int | None:
        """The token of a picture's cells: as the configuration says, or what the processor has most of instead."""
        ids = np.array(inputs['input_ids'])[0].tolist()
        if self._image_token in ids:
            return self._image_token
        more = Counter(ids) - Counter(self._tokenized(self._text))
        return max(more, key=more.__getitem__, default=self._image_token)

    def _with_rows(self, ids: Sequence[int]) -> list[int]:
        """The tokens, with as many image tokens as the model makes rows of one."""
        return [token for given in ids for token in [given] * (self._each if given == self._image_token else 1)]

    def _learn_tokens(self, span: tuple[int, ...]) -> PictureTokens:
        """The model's picture tokens, from those of a small picture. Refuses a model whose pictures are not found."""
        tokens = PictureTokens.of(self._image_token, self._placeholder, span)
        before = self._plain.index(self._placeholder)
        expanded = tokens.expand(self._plain, [TokenSpan(1, tokens.fewest, span)])
        if tokens.slots(self._plain) != [before + 1] or tokens.slots(expanded) != [before + len(span)]:
            self._refuse("a picture's tokens cannot be told from the text around them")
        return tokens

    def _refuse(self, reason: str) -> NoReturn:
        raise ModelError(
            f"The model's type '{self._type}' cannot be served exactly: {reason}. Choose a model of another type."
        )
