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

"""The record of what one question costs, while it is answered."""

from dataclasses import dataclass

from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.refresh import Level


@dataclass
class Bill:
    """What one question costs.

    before: the model's meter when the question began.
    cold: what cold-dense would have spent on the question's last answer; None before the first.
    level: of the dearest refresh that the question waited for. is_complete: whether it got an answer.
    """

    before: Work
    cold: Work | None = None
    level: Level = Level.REUSE
    is_complete: bool = False

    def due(self, spent: Work) -> Work:
        """What cold-dense would have spent. spent: what was spent on the question here.

        A question that ended early costs cold-dense as much as it did here, because it would have been cut as early.
        """
        if self.is_complete:
            return self.cold
        return min(self.cold or spent, spent, key=lambda work: work.tokens)
