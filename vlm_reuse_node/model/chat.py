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

"""A chat about pictures as mlx-vlm makes it: its text, its tokens, and what a processor makes of them."""

import os
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from jinja2 import TemplateError
from mlx_vlm.models.base import to_mlx
from mlx_vlm.prompt_utils import apply_chat_template, get_chat_template
from mlx_vlm.utils import prepare_inputs, should_add_special_tokens
from PIL import Image

from vlm_reuse_node.errors import ConfigError

# They neither begin nor end alike.
PLAIN_QUESTIONS = 'what is this?', 'how many are there'
# How a chat template asks for the date.
ASKS_TIME = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


def tokenized(
    tokenizer: Any, text: str, adds_special: bool, marker: tuple[re.Pattern[str], int] | None = None
) -> list[int]:
    """Return the tokens of a chat. marker: see `families.base.Family`."""
    if marker is None:
        return list(tokenizer(text, add_special_tokens=adds_special)['input_ids'])
    shown = tokenizer.convert_ids_to_tokens(marker[1]) if marker[1] >= 0 else None  # below 0: no token of the tokenizer
    if shown and list(tokenizer(f'{shown}{shown}')['input_ids']).count(marker[1]) == 2:
        # As one text: some tokenizers begin each text with a token of their own.
        return tokenized(tokenizer, marker[0].sub(lambda _: shown, text), adds_special)
    first, *rest = marker[0].split(text)
    ids = list(tokenizer(first, add_special_tokens=adds_special)['input_ids'])
    for part in rest:
        ids += [marker[1], *tokenizer(part, add_special_tokens=False)['input_ids']]
    return ids


def adds_special_tokens(processor: Any, model_config: Any) -> bool:
    """Whether `mlx_vlm.generate` adds a tokenizer's special tokens to a chat, which may begin with the same ones.

    Not every processor does what mlx-vlm tells it, so this looks at what one makes of a small picture.
    """
    rule = should_add_special_tokens(model_config.model_type, processor)
    text = rendered(processor, model_config, PLAIN_QUESTIONS[0], 1)
    added, plain = (list(processor.tokenizer(text, add_special_tokens=adds)['input_ids']) for adds in (True, False))
    if added == plain:
        return rule
    ids = np.array(processed(processor, model_config, text, [np.zeros((64, 64, 3), np.uint8)])['input_ids'])[0]
    same = [os.path.commonprefix([ids.tolist(), each]) for each in (added, plain)]
    return len(same[0]) > len(same[1])


def processed(processor: Any, model_config: Any, text: str, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return all that a model's processor makes of a chat with pictures, called as `mlx_vlm.generate` calls it.

    pictures: (height, width, 3) uint8. Raises whatever a processor raises.
    """
    images = [Image.fromarray(rgb) for rgb in pictures]
    try:
        given = prepare_inputs(
            processor,
            images=images,
            prompts=text,
            image_token_index=getattr(model_config, 'image_token_index', None),
            add_special_tokens=should_add_special_tokens(model_config.model_type, processor),
        )
    except ValueError:
        # It hands image processors arguments of tokenizers, which some refuse; generate then fails, too.
        given = processor(text=[text], images=images)
    return to_mlx(given)


def rendered(
    processor: Any,
    model_config: Any,
    question: str,
    pictures: int,
    system: str = '',
    now: datetime | None = None,
    thinking: bool = False,
) -> str:
    """Return a chat with so many pictures and a question behind them, as text. See `PromptTemplate`.

    thinking: whether to tell the chat template so; else mlx-vlm tells it not to think, where the template asks.
    As mlx-vlm renders it. It makes a list of the system text, which some templates take for a text: then the text is
    given to them. Raises ConfigError for a template without a place for it.
    """
    content = [{'type': 'image'}] * pictures + [{'type': 'text', 'text': question}]
    chat: list[dict[str, Any]] = [{'role': 'user', 'content': content}]
    told: dict[str, Any] = _dated(processor, now) if now else {}
    if thinking:
        told['enable_thinking'] = True
    if not system:
        return str(apply_chat_template(processor, model_config, chat, num_images=pictures, **told))
    chat.insert(0, {'role': 'system', 'content': system})
    messages: Any = apply_chat_template(processor, model_config, chat, num_images=pictures, return_messages=True)
    reason: object = 'it leaves it out'
    plain = [{'role': 'system', 'content': system}, *messages[1:]]
    # Gemma 4's processor makes a list of it again, its tokenizer does not.
    for renders, given in (processor, messages), (processor, plain), (processor.tokenizer, plain):
        try:
            text = str(get_chat_template(renders, given, add_generation_prompt=True, **told))
        except (TypeError, TemplateError) as error:
            reason = error
        else:
            if system.strip() in text and f"'text': {system!r}" not in text:
                return text
    raise ConfigError(f"system_prompt is set, and the model's chat template takes none ({reason}); leave it empty.")


def template_text(processor: Any) -> str:
    """Return the chat template itself; '' for a model without one, or with several."""
    template = getattr(processor, 'chat_template', None) or getattr(processor.tokenizer, 'chat_template', None)
    return template if isinstance(template, str) else ''


def _dated(processor: Any, now: datetime) -> dict[str, Any]:
    """The chat template with this time where it asks for the present one; nothing for a template that does not ask."""
    template = template_text(processor)
    if not ASKS_TIME.search(template):
        return {}
    return {'chat_template': ASKS_TIME.sub(lambda asked: repr(now.strftime(asked[2])), template)}
