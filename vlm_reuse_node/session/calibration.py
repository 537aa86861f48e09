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
from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.plain_text import error_line, printable
from vlm_reuse_node.session.drift_bounds import LEAST_GAIN, MOST_ANSWERS, DriftCount

NAME = 'calibration.json'
FORMAT = 1
LONGEST_NAME, MOST_NAMES = 100, 20
# Answers about one state are alike: fewer states than this tell nothing about others, however many answers they gave.
LEAST_STATES = 20
# Parameters that change what patched states answer, or which cells are patched.
PARAMETERS = (
    'visual_tokens', 'thinking', 'system_prompt', 'temperature', 'history_frames', 'change_threshold',
    'exposure_compensation', 'max_cell_age_s', 'budget_ms',
)  # fmt: skip


def parameters_of(config: Config) -> dict[str, Any]:
    """The values of PARAMETERS."""
    return {name: getattr(config, name) for name in PARAMETERS}


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

    drift: of the answers that patched states gave, after escalation. states: how many different ones.
    work, exact_work: the model's work on these questions, as a share of cold-dense's; with patches, and with whole
    pictures only.
    """

    drift: DriftCount = DriftCount()
    states: int = 0
    work: float = 0.0
    exact_work: float = 0.0

    @property
    def has_enough_states(self) -> bool:
        """Whether the answers come from so many states that they say something about others."""
        return self.states >= LEAST_STATES

    @property
    def saves(self) -> bool:
        """Whether patches were clearly less work than whole pictures."""
        return self.work <= (1 - LEAST_GAIN) * self.exact_work


@dataclass(frozen=True)
class Calibration:
    """What was measured about one model. recordings: what it was measured on, for people.

    parameters: of the node, those of PARAMETERS; it holds for these alone.
    """

    model: CalibratedModel
    parameters: dict[str, Any]
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
        if type(given['format']) is not int or given['format'] != FORMAT:
            raise ValueError(f'its format is {given["format"]!r}, not {FORMAT}')
        if not (isinstance(given['recordings'], list) and given['recordings']):
            raise ValueError(f'recordings is {given["recordings"]!r}')
        calibration = Calibration(
            _record(CalibratedModel, given['model']),
            parameters_of(Config().with_values(**{name: given['parameters'][name] for name in PARAMETERS})),
            _record(PatchLimits, given['limits']),
            _trial(given['choices']),
            _trial(given['texts']),
            tuple(_name(name) for name in given['recordings'][:MOST_NAMES]),
        )
        calibration.limits.configure(Config())
    except Exception as error:  # a file from outside may hold anything, such as a number of a thousand digits
        raise CalibrationError(
            f"'{path}' cannot be used as a calibration ({error_line(error, 200)}). Write it anew: ros2 run "
            'vlm_reuse_node calibrate.'
        ) from error
    return calibration


def _record(kind: type, given: dict) -> Any:
    """A record from its JSON. Its values must have the very types that its fields say."""
    return kind(**{field.name: _value(kind, field.name, given[field.name]) for field in fields(kind)})


def _value(kind: type, name: str, value: Any) -> Any:
    """A value of the very type that the record's field has; a whole number may stand for any number."""
    (expected,) = (field.type for field in fields(kind) if field.name == name)
    value = float(value) if expected is float and type(value) is int else value
    if type(value) is not expected:
        raise ValueError(f'{name} is {value!r}')
    return value


def _name(value: Any) -> str:
    """A recording's name as one harmless line."""
    return printable(str(value))[:LONGEST_NAME]


def _trial(given: dict) -> Trial:
    drift = _record(DriftCount, given['drift'])
    trial = Trial(drift, **{name: _value(Trial, name, given[name]) for name in ('states', 'work', 'exact_work')})
    if not 0 <= drift.drifted <= drift.answers <= MOST_ANSWERS or not 0 <= trial.states <= drift.answers:
        raise ValueError(f'{drift.drifted} of {drift.answers} answers from {trial.states} states drifted')
    if not (0 <= trial.work < math.inf and 0 <= trial.exact_work < math.inf):
        raise ValueError(f'the shares of work are {trial.work} and {trial.exact_work}')
    return trial
