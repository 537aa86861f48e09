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

"""The record of one claim: what was asked and compared, and what follows."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from vlm_reuse_node.check.cold import Difference
from vlm_reuse_node.errors import VlmReuseError


class CheckError(VlmReuseError):
    """Something cannot be checked."""


class Mark(StrEnum):
    """What came of a claim. A measurement claims nothing."""

    PASS = 'PASS'
    FAULT = 'FAULT'
    MEASURED = 'measured'
    NOT_AVAILABLE = 'not available'


@dataclass
class Claim:
    """One claim, such as that answers at a level are those of cold-dense.

    about: what it says, in a sentence. asked: questions. equal: answers that are those of the reference.
    ties: answers among the equal ones that chose another token where both are equally probable within the noise.
    restored: how often the state was the same bit for bit after a question, of restored_of comparisons.
    passes: calls of the language model for each question, those that decode included.
    differences: how far warm and cold are apart, by what was compared.
    faults: sentences. reason: why the claim does not apply to this model; '': it does.
    is_measurement: whether a difference is no fault.
    """

    name: str
    about: str
    asked: int = 0
    equal: int = 0
    ties: int = 0
    restored: int = 0
    restored_of: int = 0
    passes: list[int] = field(default_factory=list)
    differences: dict[str, Difference] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    reason: str = ''
    is_measurement: bool = False

    @property
    def mark(self) -> Mark:
        """What came of it."""
        if self.faults:
            return Mark.FAULT
        if self.reason:
            return Mark.NOT_AVAILABLE
        return Mark.MEASURED if self.is_measurement else Mark.PASS

    @property
    def worst_score(self) -> Difference | None:
        """The difference of log-probabilities that is the furthest from its bound, or nearest to it; None without."""
        return _worst(each for what, each in self.differences.items() if what.startswith('log-prob'))

    def fail(self, faults: Iterable[str]) -> None:
        """Add faults, each once."""
        self.faults += [fault for fault in dict.fromkeys(faults) if fault not in self.faults]

    def compare(self, what: str, difference: Difference) -> None:
        """Add a difference. Beyond the noise it is a fault, unless this is a measurement."""
        self.differences[what] = difference
        if not (difference.is_noise or self.is_measurement):
            self.fail([f'{what} differ by {difference.apart:.2g}, and noise ends at {difference.bound:.2g}.'])


def _worst(differences: Iterable[Difference]) -> Difference | None:
    return max(differences, key=lambda each: (not each.is_noise, each.apart / each.bound), default=None)
