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

"""The result of a check, and its JSON."""

import json
import math
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vlm_reuse_node.check.advice import Memory, Suggestion
from vlm_reuse_node.check.claim import Claim, Mark
from vlm_reuse_node.check.machine import Machine, ModelFacts
from vlm_reuse_node.check.sizes import Size
from vlm_reuse_node.check.stages import Stage

FORMAT = 1


@dataclass(frozen=True)
class PictureFacts:
    """The pictures that were looked at. cells: rows and columns."""

    source: str
    different: int
    width: int
    height: int
    cells: tuple[int, int]


@dataclass(frozen=True)
class Report:
    """Everything that a check found. stages, sizes, rates, memory, suggestions: empty or None after a fault.

    sizes_note: why there are not more sizes, or not all were timed; '' where nothing is missing.
    """

    model: ModelFacts
    machine: Machine
    pictures: PictureFacts
    claims: tuple[Claim, ...]
    stages: tuple[Stage, ...]
    sizes: tuple[Size, ...]
    sizes_note: str
    rates: dict[str, float]
    memory: Memory | None
    suggestions: tuple[Suggestion, ...]
    seconds: float

    @property
    def faults(self) -> list[str]:
        """All faults, with the name of their claims."""
        return [f'{claim.name}: {fault}' for claim in self.claims for fault in claim.faults]

    @property
    def is_trusted(self) -> bool:
        """Whether every claim that was made held."""
        return not self.faults and any(claim.mark == Mark.PASS for claim in self.claims)


def to_json(report: Report) -> dict:
    """Return the report for programs. What is no number becomes null."""
    made = datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
    claims = [asdict(claim) | {'mark': str(claim.mark)} for claim in report.claims]
    content = asdict(report) | {'claims': claims}
    return _finite({'format': FORMAT, 'made': made, 'trusted': report.is_trusted} | content)


def write(report: Report, path: Path) -> None:
    """Write the file; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_json(report), indent=1, allow_nan=False) + '\n', encoding='utf-8')


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
