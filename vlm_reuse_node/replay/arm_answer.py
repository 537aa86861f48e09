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

"""The record of what one arm answered."""

from dataclasses import dataclass

from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.session.answer import Answer


@dataclass(frozen=True)
class ArmAnswer:
    """What an arm answered, and what that cost.

    frames: the pictures in the prompt, oldest first, the live one last.
    refreshes: pictures that this answer paid for.
    visual_tokens: of the pictures that were computed for this answer; None where the arm does not tell.
    tokens_prefilled: all prompt tokens that this answer paid for, those of its pictures included.
    total_ms: the whole call.
    """

    answer: Answer
    frames: tuple[Frame, ...] = ()
    refreshes: tuple[Refresh, ...] = ()
    visual_tokens: int | None = None
    tokens_reused: int = 0
    tokens_prefilled: int = 0
    total_ms: float = 0.0
