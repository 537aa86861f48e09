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

"""Runners that compute everything from nothing for every question."""

from collections.abc import Callable

from vlm_reuse_node.config import EXACT_POLICY
from vlm_reuse_node.replay.arm_answer import ArmAnswer
from vlm_reuse_node.replay.runners.runner import ArmContext, ReplaySession, WaitsForQuestions, timed, visual_tokens_of
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question


class Dense(WaitsForQuestions):
    """Everything from nothing for every question, on some of the pictures."""

    def __init__(self, context: ArmContext, choose: Callable[[], list[Frame]]) -> None:
        """Start without a picture. choose: returns the pictures of the prompt, oldest first."""
        self._choose = choose
        self._paid: list[Refresh] = []
        self._session = ReplaySession(
            context.vlm,
            context.config.with_values(refresh_policy=EXACT_POLICY, keyframe_interval_s=0.0),
            context.camera,
            on_refresh=lambda _, refresh: self._paid.append(refresh),
        )

    def ask(self, question: Question, now_ns: int) -> ArmAnswer:
        """Compute vision, prefill of everything, and decode."""
        frames = self._choose()
        self._start_anew(pictures=len(frames))
        ms, answer = timed(lambda: self._observe_and_ask(frames, question, now_ns))
        kept = self._session.frames
        if len(kept) != len(frames):
            answer = Answer(
                Status.MODEL_ERROR,
                f'The prompt holds {len(kept)} of {len(frames)} pictures; '
                'the model or its chat template takes no more.',
            )
        prefilled = answer.tokens_reused + answer.tokens_prefilled
        return ArmAnswer(answer, kept, tuple(self._paid), visual_tokens_of(self._paid), 0, prefilled, ms)

    def _start_anew(self, pictures: int) -> None:
        self._paid.clear()
        self._session.reset()
        self._session.config = self._session.config.with_values(history_frames=pictures - 1)

    def _observe_and_ask(self, frames: list[Frame], question: Question, now_ns: int) -> Answer:
        for frame in frames:
            self._session.observe(frame, force=True)
        return self._session.ask(question, now_ns=now_ns)
