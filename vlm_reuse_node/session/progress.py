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

"""The record of an answer's progress."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Progress of an answer.

    stage: 'queue', 'refresh', 'prefill', 'thinking' or 'decode'. An escalation goes back to 'refresh'.
    text: the answer so far. tokens_generated: for it; 0 for a remembered answer, whose text comes at once.
    """

    stage: str
    text: str = ''
    tokens_generated: int = 0
