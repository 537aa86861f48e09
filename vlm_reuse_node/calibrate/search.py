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

"""Chooses the limits of patching: the least work at which the samples drift little enough."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from vlm_reuse_node.calibrate.sample import Sample
from vlm_reuse_node.session.calibration import PatchLimits
from vlm_reuse_node.session.drift_bounds import share_bounds

HALOS = (0, 1)
MOST_PATCHES = (1, 2, 4, 8, 16, 32)
LARGEST_SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
# On the samples that the limits are chosen on, the bound of the drift must stay below this share of max_drift, or none
# may drift: chosen with less care, other samples of the same scene drifted twice as much.
SAFETY = 0.5
# How much higher than the least confidence that would do on these samples it is set, in log-odds.
MARGIN = 0.5
# Not lower, even where no sample has drifted.
LEAST_CONFIDENCE = 0.5
# From here on an answer can hardly be confident enough.
NEVER = 0.9995


@dataclass(frozen=True)
class Choice:
    """Limits, and what they would have come to on the samples. cost: mean share of the cells for a question."""

    limits: PatchLimits
    cost: float


def choose(samples: Mapping[int, Sequence[Sample]], max_drift: float) -> Choice:
    """Choose the limits with the least cost; among equals the narrowest.

    samples: by halo, of states that were patched without limits. What stricter limits would have come to is estimated
    from them: the state is whole where they are exceeded.
    """
    best: Choice | None = None
    for halo, all_of_halo in samples.items():
        for most in MOST_PATCHES:
            for share in LARGEST_SHARES:
                choice = _fit(all_of_halo, halo, most, share, max_drift)
                if best is None or choice.cost < best.cost - 1e-9:
                    best = choice
    if best is None:
        raise ValueError('There are no samples to choose limits from; expected those of one halo at least.')
    return best


def _fit(samples: Sequence[Sample], halo: int, most: int, share: float, max_drift: float) -> Choice:
    """The least confidences that these limits need, and their cost."""

    def is_patched(sample: Sample) -> bool:
        return not sample.exact and sample.patches <= most and sample.share <= share

    least = {
        has_choices: least_confidence(
            (each for each in samples if each.has_choices == has_choices and is_patched(each)), max_drift
        )
        for has_choices in (True, False)
    }

    def cost(sample: Sample) -> float:
        """Of a question that is asked alone about its picture."""
        if sample.exact:
            return sample.paid
        if not is_patched(sample) or least[sample.has_choices] >= 1:
            return 1.0
        return sample.paid + (sample.confidence < least[sample.has_choices])

    mean = sum(map(cost, samples)) / len(samples) if samples else math.inf
    return Choice(PatchLimits(halo, most, share, least[True], least[False]), mean)


def least_confidence(samples: Iterable[Sample], max_drift: float) -> float:
    """The confidence below which answers are to be given again, so that the others drift little enough; 1: all."""
    samples = sorted(samples, key=lambda sample: -sample.confidence)
    if not samples:
        return 1.0
    drifted = list(accumulate(sample.drifted for sample in samples))
    kept = max(
        (count for count, bad in enumerate(drifted, 1) if not bad or share_bounds(bad, count)[1] <= SAFETY * max_drift),
        default=0,
    )
    return _raised(samples[kept].confidence if kept < len(samples) else 0.0)


def _raised(confidence: float) -> float:
    """A confidence a margin above another one."""
    if confidence <= 0:
        return LEAST_CONFIDENCE
    odds = math.log(confidence) - math.log1p(-min(confidence, 1 - 1e-12)) + MARGIN
    raised = max(LEAST_CONFIDENCE, 1 / (1 + math.exp(-odds)))
    return 1.0 if raised >= NEVER else round(raised, 4)
