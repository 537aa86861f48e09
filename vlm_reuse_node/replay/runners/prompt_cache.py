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

"""The runner of mlx-vlm's own caches."""

from typing import Any

import mlx.core as mx
from mlx_vlm import apc, generate
from mlx_vlm.generate import PromptCacheState
from PIL import Image

from vlm_reuse_node.model.chat import rendered
from vlm_reuse_node.replay.answer_text import plain
from vlm_reuse_node.replay.arm_answer import ArmAnswer
from vlm_reuse_node.replay.runners.runner import ArmContext, WaitsForQuestions, timed
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.answerer import MOST_THOUGHTS
from vlm_reuse_node.session.question import Question


class MlxVlm(WaitsForQuestions):
    """mlx-vlm's own `generate` on the newest picture, in text, with one cache for the whole bag. The prompt is ours."""

    def __init__(self, context: ArmContext, **cache: Any) -> None:
        """Take the cache as `generate` takes it, by name."""
        self._context = context
        self._cache = cache

    @classmethod
    def with_prompt_cache(cls, context: ArmContext) -> 'MlxVlm':
        """Start with an empty `PromptCacheState`, which keeps the last prompt and compares tokens only."""
        return cls(context, prompt_cache_state=PromptCacheState())

    @classmethod
    def with_prefix_cache(cls, context: ArmContext) -> 'MlxVlm':
        """Start with an empty automatic prefix cache, which keeps many prompts and knows pictures by their pixels."""
        return cls(context, apc_manager=apc.APCManager())

    def ask(self, question: Question, now_ns: int) -> ArmAnswer:
        """Answer in text; a choice is the one that the text names, and none is a parse failure."""
        vlm = self._context.vlm
        config = self._context.config
        frame = self._context.window.newest
        question = question.completed(config)
        template = vlm.template(config.system_prompt, 1)
        thinks = template.thinking and not question.choices
        options: dict[str, Any] = {
            'prompt': rendered(
                vlm._processor, vlm._model.config, question.text, 1, config.system_prompt, thinking=thinks
            ),
            'image': [Image.fromarray(frame.rgb)],
            'max_tokens': question.max_tokens + (MOST_THOUGHTS if thinks else 0),
            'temperature': config.temperature,
        } | self._cache
        mx.random.seed(config.seed)
        ms, result = timed(lambda: generate(vlm._model, vlm._processor, **options))
        ids = tuple(token for token in result.token_ids or () if token not in vlm.stop_ids)
        answer = Answer(
            Status.OK,
            text=vlm.text(template.spoken(ids)) if thinks else result.text.strip(),
            choice_index=_choice_in(result.text, question.choices),
            camera=self._context.camera,
            model=vlm.name,
            token_ids=ids,
            tokens_generated=len(ids),
        )
        reused = result.cached_tokens
        return ArmAnswer(answer, (frame,), (), None, reused, result.prompt_tokens - reused, ms)


def _choice_in(text: str, choices: tuple[str, ...]) -> int:
    """Which choice a text is, or begins with as the only one; -1: none."""
    said = plain(text)
    exact = [index for index, choice in enumerate(choices) if plain(choice) == said]
    begun = [index for index, choice in enumerate(choices) if f'{said} '.startswith(f'{plain(choice)} ')]
    return exact[0] if exact else begun[0] if len(begun) == 1 else -1
