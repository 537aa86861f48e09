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

"""The record of the model's reply to a question. `Answer` adds the frame it came from and its cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """The model's part of an answer. The fields have the names of `Answer`'s fields.

    confidence: probability of the best choice, or of a text's least likely token.
    """

    text: str
    confidence: float
    choice_index: int = -1
    choice_scores: tuple[float, ...] = ()
    token_ids: tuple[int, ...] = ()
    message: str = ''

    def differs_from(self, other: 'Outcome') -> bool:
        """Whether the choice or the tokens differ from another answer to the same question."""
        return (self.choice_index, self.token_ids) != (other.choice_index, other.token_ids)
