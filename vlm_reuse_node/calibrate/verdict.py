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

"""What a measurement means: whether `refresh_policy: auto` will patch, and what is missing where it cannot be told."""

import math
from dataclasses import dataclass, replace
from enum import IntEnum

from vlm_reuse_node.calibrate.measure import Judged, Measured
from vlm_reuse_node.calibrate.stretches import SHORTEST_S
from vlm_reuse_node.session.calibration import LEAST_STATES

# A picture mostly changes as a whole when more than this share of the questions needed a whole one.
MOSTLY = 0.5


class Exit(IntEnum):
    """Exit codes of the program."""

    PATCH = 0
    FAILED = 1
    USAGE = 2
    EXACT = 3
    TOO_LITTLE = 4
    CANNOT_PATCH = 5
    INTERRUPTED = 130


@dataclass(frozen=True)
class KindVerdict:
    """What was found about one kind of question. sentence: for people. exit: PATCH, EXACT or TOO_LITTLE."""

    name: str
    exit: Exit
    sentence: str


def verdicts(measured: Measured, max_drift: float) -> list[KindVerdict]:
    """Say of choices and of texts whether patched states may answer them."""
    limits = measured.calibration.limits
    found = [
        _verdict('choices', measured.choices, limits.min_confidence, max_drift),
        _verdict('texts', measured.texts, limits.min_text_confidence, max_drift),
    ]
    if not (measured.choices.patched or measured.texts.patched):
        why = 'every answer failed' if measured.failures else f'it needs at least two stretches of {SHORTEST_S:g} s'
        return [replace(each, sentence=f'Nothing was compared: {why}.') for each in found]
    return found


def exit_code(found: list[KindVerdict]) -> Exit:
    """PATCH when patched states may answer any kind; else EXACT, when that was shown for any."""
    codes = {verdict.exit for verdict in found}
    return next(code for code in (Exit.PATCH, Exit.EXACT, Exit.TOO_LITTLE) if code in codes)


def headline(found: list[KindVerdict]) -> str:
    """The verdict in one sentence."""
    patched = [verdict.name for verdict in found if verdict.exit is Exit.PATCH]
    if patched:
        return f'On scenes like these, refresh_policy auto answers {" and ".join(patched)} from patched states.'
    if exit_code(found) is Exit.EXACT:
        return 'On scenes like these, refresh_policy auto computes every changed picture whole.'
    return 'This cannot be told yet, so refresh_policy auto computes every changed picture whole.'


def _verdict(name: str, judged: Judged, least_confidence: float, max_drift: float) -> KindVerdict:
    trial, asked = judged.trial, len(judged.patched)
    drift = trial.drift
    if not asked:
        return KindVerdict(name, Exit.TOO_LITTLE, 'None of the questions that were answered is of this kind.')
    if all(sample.exact for sample in judged.unlimited):
        if sum(sample.paid >= 1 for sample in judged.unlimited) > MOSTLY * judged.asked:
            return KindVerdict(
                name,
                Exit.EXACT,
                'The picture mostly changed as a whole, as from a camera that moves; there is nothing to patch in it.',
            )
        return KindVerdict(
            name,
            Exit.TOO_LITTLE,
            f'The recording has too little change: none of {asked} answers came from a patched state. Record a scene '
            'in which things move.',
        )
    if least_confidence >= 1 or not drift.answers:
        return KindVerdict(
            name,
            Exit.EXACT,
            'All answers of patched states were less sure than the limit, so whole pictures answer such questions.',
        )
    text = (
        f'{drift.drifted} of {drift.answers} answers from patched states drifted (at most {100 * drift.high:.3g} % '
        'with 95 % confidence)'
    )
    if not drift.high <= max_drift:
        return _undecided(name, text, judged, max_drift)
    if not trial.has_enough_states:
        return KindVerdict(
            name,
            Exit.TOO_LITTLE,
            f'{text}, but they come from {trial.states} patched states only, and answers about one state are alike; '
            f'{LEAST_STATES} are needed. Record longer, with more changes.',
        )
    if not trial.saves:
        return KindVerdict(
            name,
            Exit.EXACT,
            f'{text}, but patches were no less work than whole pictures: {trial.work:.2f} times that of cold-dense '
            f'against {trial.exact_work:.2f}.',
        )
    return KindVerdict(
        name, Exit.PATCH, f'{text}, for {trial.work:.2f} times the work of cold-dense (exact: {trial.exact_work:.2f}).'
    )


def _undecided(name: str, text: str, judged: Judged, max_drift: float) -> KindVerdict:
    """The bound is above max_drift: more answers would lower it, or there is too much drift."""
    drift = judged.trial.drift
    needed = drift.needed(max_drift)
    if math.isinf(needed):
        return KindVerdict(name, Exit.EXACT, f'{text}, which is more than max_drift {100 * max_drift:g} %.')
    times = max(1.1, needed / max(1, drift.answers))
    return KindVerdict(
        name,
        Exit.TOO_LITTLE,
        f'{text}; about {needed} such answers are needed to show that it stays below max_drift {100 * max_drift:g} %. '
        f'Record about {times:.1f} times as long, or ask more different questions.',
    )
