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

"""Decides whether patched states are used: what `refresh_policy: auto` means for this model, and why."""

from dataclasses import dataclass, replace
from pathlib import Path

from vlm_reuse_node.config import AUTO_POLICY, EXACT_POLICY, Config
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.plain_text import error_line
from vlm_reuse_node.session.calibration import (
    NAME,
    CalibratedModel,
    Calibration,
    CalibrationError,
    Trial,
    parameters_of,
    read,
)

HOW = 'To use patches, measure this model on a recording: ros2 run vlm_reuse_node calibrate'


@dataclass(frozen=True)
class Trust:
    """A configuration, with what its refresh_policy comes to.

    given: the configuration. used: the same with refresh_policy exact or patch, and for auto with the calibration's
    limits. why: one sentence for people. is_refused: whether there is a calibration that may not be used.
    """

    given: Config
    used: Config
    why: str
    is_refused: bool = False


def decide(vlm: Vlm, config: Config) -> Trust:
    """Find out what the refresh_policy comes to. Reads the calibration, if auto needs one. Raises nothing."""
    if config.refresh_policy != AUTO_POLICY:
        return Trust(config, config, f"The parameter refresh_policy is '{config.refresh_policy}'.")
    exact = config.with_values(refresh_policy=EXACT_POLICY)
    if not vlm.family.encodes_cells:
        return Trust(config, exact, 'This model cannot compute single cells of a picture.')
    try:
        path = Path(config.calibration).expanduser() if config.calibration else (vlm.folder or Path()) / NAME
        if not config.calibration and not (vlm.folder and path.is_file()):
            return Trust(config, exact, f'There is no calibration of this model. {HOW}.')
        calibration = read(path)
        _check(calibration, vlm, config, path)
        return _judge(config, exact, calibration)
    except CalibrationError as error:
        return Trust(config, exact, str(error), is_refused=True)
    except Exception as error:  # whatever is wrong with a file or a name, the node stays up
        why = error_line(error, 200)
        return Trust(config, exact, f"The calibration '{config.calibration}' cannot be used: {why}", is_refused=True)


def _check(calibration: Calibration, vlm: Vlm, config: Config, path: Path) -> None:
    """Refuse a calibration of anything but the model as it is computed here, with these parameters."""
    here, there = CalibratedModel.of(vlm), calibration.model
    if here == there:
        _check_parameters(calibration.parameters, parameters_of(config), path)
        return
    if here.fingerprint != there.fingerprint:
        what = 'another model'
    else:
        names = {'family': 'family', 'precision': 'precision', 'device': 'device', 'engine': 'version of the refreshes'}
        what = ', '.join(
            f'{title} {getattr(there, name)} (here {getattr(here, name)})'
            for name, title in names.items()
            if getattr(here, name) != getattr(there, name)
        )
    raise CalibrationError(f"The calibration '{path}' is of {what}. {HOW}.")


def _check_parameters(there: dict, here: dict, path: Path) -> None:
    other = [f'{name} {there[name]!r} (here {here[name]!r})' for name in there if there[name] != here[name]]
    if other:
        raise CalibrationError(f"The calibration '{path}' was made with {', '.join(other)}. {HOW}.")


def _judge(config: Config, exact: Config, calibration: Calibration) -> Trust:
    """Use patches for the kinds of answers whose drift was shown to stay below max_drift, if that saves work."""
    limits = calibration.limits
    kinds = {
        'choices': (calibration.choices, limits.min_confidence),
        'texts': (calibration.texts, limits.min_text_confidence),
    }
    refusals = {name: _why_not(trial, least, config.max_drift) for name, (trial, least) in kinds.items()}
    trusted = [name for name, why in refusals.items() if not why]
    measured = '; '.join(f'{name}: {why or _drift(kinds[name][0])}' for name, why in refusals.items())
    first, more = calibration.recordings[0], len(calibration.recordings) - 1
    on = f'Measured on {first}{f" and {more} more" if more else ""}: {measured}.'
    if not trusted:
        return Trust(config, exact, on)
    used = replace(
        limits,
        min_confidence=limits.min_confidence if 'choices' in trusted else 1.0,
        min_text_confidence=limits.min_text_confidence if 'texts' in trusted else 1.0,
    )
    return Trust(config, used.configure(config), on)


def _why_not(trial: Trial, least_confidence: float, max_drift: float) -> str:
    """Why patched states may not give such answers; '' when they may."""
    if least_confidence >= 1:
        return 'no patched state was sure enough'
    if not trial.has_enough_states:
        return f'only {trial.states} patched states were measured'
    if not trial.drift.high <= max_drift:
        return f'{_drift(trial)}, which does not show that it stays below max_drift {100 * max_drift:g} %'
    if not trial.saves:
        return f'patches were no less work than whole pictures ({trial.work:.2f} against {trial.exact_work:.2f})'
    return ''


def _drift(trial: Trial) -> str:
    drift = trial.drift
    return f'{drift.drifted} of {drift.answers} drifted (at most {100 * drift.high:.3g} % with 95 % confidence)'
