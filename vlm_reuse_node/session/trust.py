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
from vlm_reuse_node.session import calibration as calibrations
from vlm_reuse_node.session.calibration import CalibratedModel, Calibration, CalibrationError, Trial

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
    path = Path(config.calibration).expanduser() if config.calibration else (vlm.folder or Path()) / calibrations.NAME
    if not config.calibration and not (vlm.folder and path.is_file()):
        return Trust(config, exact, f'There is no calibration of this model. {HOW}.')
    try:
        calibration = calibrations.read(path)
        _check(calibration, vlm, path)
    except CalibrationError as error:
        return Trust(config, exact, str(error), is_refused=True)
    return _judge(config, exact, calibration)


def _check(calibration: Calibration, vlm: Vlm, path: Path) -> None:
    """Refuse a calibration of anything but the model as it is computed here."""
    here, there = CalibratedModel.of(vlm), calibration.model
    if here == there:
        return
    if here.fingerprint != there.fingerprint:
        what = 'another model'
    else:
        names = {'family': 'family', 'precision': 'precision', 'device': 'device', 'engine': 'version of this software'}
        what = ', '.join(
            f'{title} {getattr(there, name)} (here {getattr(here, name)})'
            for name, title in names.items()
            if getattr(here, name) != getattr(there, name)
        )
    raise CalibrationError(f"The calibration '{path}' is of {what}. {HOW}.")


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
    on = f'Measured on {", ".join(calibration.recordings)}: {measured}.'
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
    if trial.drift.high > max_drift:
        return f'{_drift(trial)}, which does not show that it stays below max_drift {max_drift:g}'
    if not trial.saves:
        return f'patches were no less work than whole pictures ({trial.work:.2f} against {trial.exact_work:.2f})'
    return ''


def _drift(trial: Trial) -> str:
    drift = trial.drift
    return f'{drift.drifted} of {drift.answers} drifted (at most {100 * drift.high:.2g} % with 95 % confidence)'
