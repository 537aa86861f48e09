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

"""The order in which the arms take their turns: a new one each time, so that no arm is always the first.

The first arm after a picture pays for cold caches of processor and allocator. With a fixed order that would count
against the same arm every time.
"""

from collections.abc import Iterable

import numpy as np

from vlm_reuse_node.replay.arms import POLICY, REFERENCE

_OF_POLICYS_STATE = 'cold-cached'
_OF_POLICYS_KEYFRAMES = (REFERENCE, 'cold-again')


class ArmOrder:
    """Draws an order for each turn. The same seed draws the same orders for the same turns."""

    def __init__(self, seed: int, *, has_history: bool) -> None:
        """has_history: whether prompts contain keyframes of auto, so that cold-dense cannot be asked before it."""
        self._rng = np.random.default_rng(seed)
        self._after_policy = {_OF_POLICYS_STATE, *(_OF_POLICYS_KEYFRAMES if has_history else ())}

    def of_a_picture(self, names: Iterable[str]) -> list[str]:
        """Return the names in a random order."""
        return [str(name) for name in self._rng.permutation(list(names))]

    def of_a_question(self, names: Iterable[str]) -> list[str]:
        """Return the names in a random order, with auto before the arms that see the pictures it has kept."""
        order = self.of_a_picture(names)
        policy = order.index(POLICY)
        first = next(index for index, name in enumerate(order) if name == POLICY or name in self._after_policy)
        order[first], order[policy] = order[policy], order[first]
        return order
