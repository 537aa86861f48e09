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

"""What the true answer to a question is, and when."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Truth:
    """The true answer from `from_s` on, before `to_s`: seconds from the bag's first picture."""

    from_s: float
    to_s: float
    answer: str


def truth_at(truths: Iterable[Truth], picture_s: float) -> str | None:
    """Return the true answer about a picture taken then; None: nobody can judge."""
    return next((truth.answer for truth in truths if truth.from_s <= picture_s < truth.to_s), None)
