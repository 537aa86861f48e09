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

"""The record of a calibration: what was measured about patched states of one model, and the file that holds it.

The program `calibrate` writes it from a recording. `trust.py` decides by it what `refresh_policy: auto` does.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vlm_reuse_node.config import PATCH_POLICY, Config
from vlm_reuse_node.errors import ConfigError, VlmReuseError
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.session.drift_bounds import DriftCount

NAME = 'calibration.json'
FORMAT = 1
LONGEST_NAME = 100
# Raise it when the change detector, the refreshes or a family change, so that patched states come out differently.
ENGINE = 1


class CalibrationError(VlmReuseError):
    """A calibration that cannot be used, or not for this model."""


@dataclass(frozen=True)
class CalibratedModel:
    """What a calibration holds for, and nothing else. family: the class that serves the model."""

    fingerprint: str
    family: str
    precision: str
    device: str
    engine: int = ENGINE

    @classmethod
    def of(cls, vlm: Vlm) -> 'CalibratedModel':
        """A loaded model, as it is computed here."""
        family = type(vlm.family).__module__.rpartition('.')[2]
        return cls(vlm.fingerprint, family, vlm.precision, vlm.device)


@dataclass(frozen=True)
class PatchLimits:
    """How far patching may go: the parameters of these names. A least confidence of 1: no such answer is given."""

    change_halo: int
    max_patches: int
    max_patch_share: float
    min_confidence: float
    min_text_confidence: float

    def configure(self, config: Config) -> Config:
        """The configuration that patches within these limits. Raises ConfigError for a value out of range."""
        return config.with_values(refresh_policy=PATCH_POLICY, **asdict(self))


@dataclass(frozen=True)
class Trial:
    """What patching within the limits came to for one kind of question, on stretches that they were not chosen on.

    drift: of the answers that patched states gave, after escalation. work, exact_work: the model's work on these
    questions, as a share of cold-dense's; with patches, and with whole pictures only.
    """

    drift: DriftCount = DriftCount()
    work: float = 0.0
    exact_work: float = 0.0

    @property
    def saves(self) -> bool:
        """Whether patches were less work than whole pictures."""
        return self.work < self.exact_work


@dataclass(frozen=True)
class Calibration:
    """What was measured about one model. recordings: what it was measured on, for people."""

    model: CalibratedModel
    limits: PatchLimits
    choices: Trial
    texts: Trial
    recordings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The record as `read` takes it."""
        return {'format': FORMAT, **asdict(self)}


def read(path: Path) -> Calibration:
    """Read a calibration. Raises CalibrationError that says what is wrong with the file."""
    try:
        given = json.loads(path.read_text(encoding='utf-8'))
        if given['format'] != FORMAT:
            raise ValueError(f'its format is {given["format"]!r}, not {FORMAT}')
        calibration = Calibration(
            _record(CalibratedModel, given['model']),
            _record(PatchLimits, given['limits']),
            _trial(given['choices']),
            _trial(given['texts']),
            tuple(_name(name) for name in given['recordings']),
        )
        calibration.limits.configure(Config())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        why = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        raise CalibrationError(
            f"'{path}' cannot be used as a calibration ({why}). Write it anew: ros2 run vlm_reuse_node calibrate."
        ) from error
    return calibration


def _record(kind: type, given: dict) -> Any:
    """A record from its JSON. Its values must have the very types that its fields say."""
    values = {}
    for field in fields(kind):
        value = given[field.name]
        value = float(value) if field.type is float and type(value) is int else value
        if type(value) is not field.type:
            raise ValueError(f'{field.name} is {value!r}')
        values[field.name] = value
    return kind(**values)


def _name(value: Any) -> str:
    """A recording's name as one harmless line."""
    return ''.join(letter if letter.isprintable() else ' ' for letter in str(value))[:LONGEST_NAME]


def _trial(given: dict) -> Trial:
    drift, (work, exact_work) = _record(DriftCount, given['drift']), (given['work'], given['exact_work'])
    if not 0 <= drift.drifted <= drift.answers:
        raise ValueError(f'{drift.drifted} of {drift.answers} answers drifted')
    if not (0 <= work < math.inf and 0 <= exact_work < math.inf):
        raise ValueError(f'the shares of work are {work} and {exact_work}')
    return Trial(drift, float(work), float(exact_work))
