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

"""mlx-vlm's own ways to answer a follow-up question, on the same weights."""

from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from followup_case import ANSWER_TOKENS, FEW_RUNS, FollowupCase
from mlx_vlm import apc, generate
from mlx_vlm.generate import PromptCacheState
from PIL import Image
from timing import Run

from vlm_reuse_node.model.chat import rendered
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answer import Answer

PEERS = ('generate', 'PromptCacheState', 'APC')
SLOW_MS = 1000


@dataclass(frozen=True)
class Peers:
    """mlx-vlm on one case.

    old, new: frames, before and after the newest one was replaced. told_apart: whether that changes cold answers.
    """

    case: FollowupCase
    old: list[Frame]
    new: list[Frame]
    told_apart: bool

    def measure(self, ours: Answer) -> dict[str, dict]:
        """Return an entry for each way; cold `generate` is the reference of the others. ours: our answer."""
        try:
            runs = [self.run(self.case.question, self.old) for _ in range(self.case.cold_runs)]
        except Exception as error:
            return dict.fromkeys(PEERS, _failure(error))
        answer = runs[0].result[0]
        cold = {
            'ms': median(run.ms for run in runs),
            'cpu_ms': median(run.cpu_ms for run in runs),
            'tokens_reused': 0,
            'answer_right': True,
            'answer_right_after_new_picture': True,
            'answer_equal_to_ours': answer == list(ours.token_ids),
        }
        prompt_cache = PromptCacheState()
        apc_manager = apc.APCManager()
        try:  # one run fills both
            self.run(self.case.other, self.old, prompt_cache_state=prompt_cache, apc_manager=apc_manager)
        except Exception as error:
            return {PEERS[0]: cold} | dict.fromkeys(PEERS[1:], _failure(error))
        return {
            'generate': cold,
            'PromptCacheState': self.follow_up(answer, prompt_cache_state=prompt_cache),
            'APC': self.follow_up(answer, apc_manager=apc_manager),
        }

    def run(self, text: str, frames: list[Frame], **options: Any) -> Run:
        """Answer. The result is the answer's tokens, and the number of prompt tokens that were reused."""
        model = self.case.vlm._model
        processor = self.case.vlm._processor
        options |= {
            'prompt': rendered(processor, model.config, text, len(frames)),  # the same tokens as ours
            'image': [Image.fromarray(frame.rgb) for frame in frames],
            'max_tokens': ANSWER_TOKENS,
            'temperature': 0.0,
        }

        def answer() -> tuple[list[int], int]:
            result = generate(model, processor, **options)
            return list(result.token_ids or ()), result.cached_tokens

        return self.case.run(answer)

    @cached_property
    def _after_new_picture(self) -> list[int]:
        """The cold answer to the other question about the new picture."""
        return self.run(self.case.other, self.new).result[0]

    def follow_up(self, answer: list[int], **options: Any) -> dict:
        """Return the entry of one that keeps something between questions. answer: the right one.

        ms, cpu_ms: of a question after another one; same_question_ms and the like: of it once more.
        """
        question = self.case.question
        other = self.case.other
        try:
            runs = [self.run(question, self.old, **options)]
            while len(runs) < FEW_RUNS and runs[-1].ms < SLOW_MS:
                self.run(other, self.old, **options)
                runs.append(self.run(question, self.old, **options))
            again = self.run(question, self.old, **options)
            entry = {
                'ms': median(run.ms for run in runs),
                'same_question_ms': again.ms,
                'same_question_cpu_ms': again.cpu_ms,
                'cpu_ms': median(run.cpu_ms for run in runs),
                'tokens_reused': max(run.result[1] for run in runs),
                'answer_right': all(run.result[0] == answer for run in [*runs, again]),
                'answer_right_after_new_picture': None,
            }
            if not entry['tokens_reused']:
                return entry | {'reason': 'Nothing is reused: every answer is a cold one.'}
            if not self.told_apart:
                return entry | {'reason': 'No new picture was found that changes the cold answer.'}
            after, _ = self.run(other, self.new, **options).result
            return entry | {'answer_right_after_new_picture': after == self._after_new_picture}
        except Exception as error:
            return _failure(error)


def _failure(error: Exception) -> dict:
    """The entry of a peer that cannot run."""
    return {
        'ms': None,
        'cpu_ms': None,
        'tokens_reused': None,
        'answer_right': None,
        'answer_right_after_new_picture': None,
        'reason': ' '.join(f'{type(error).__name__}: {error}'.split())[:200],
    }
