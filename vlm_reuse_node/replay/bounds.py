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

"""Confidence intervals and significance tests for counts and paired times; SciPy computes them."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from vlm_reuse_node.session import drift_bounds
from vlm_reuse_node.session.drift_bounds import CONFIDENCE

RESAMPLES = 2000
SEED = 0


def share_bounds(count: int, total: int) -> tuple[float, float] | tuple[None, None]:
    """Return the exact (Clopper-Pearson) two-sided 95 % interval of a share; (None, None) without a count."""
    if not total:
        return None, None
    low, high = drift_bounds.share_bounds(count, total)
    return round(low, 6), round(high, 6)


def mcnemar_p(one: int, other: int) -> float:
    """Exact McNemar test: how likely is a split at least as uneven when neither side is better? 1.0 without any."""
    return float(f'{stats.binomtest(one, one + other, 0.5).pvalue:.4g}') if one + other else 1.0


def ratio_bounds(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % interval of the ratio of two paired samples' medians: percentile bootstrap over the pairs.

    (None, None) for less than three pairs, and where something took no time.
    """
    if len(slow) < 3 or min(fast) <= 0:
        return None, None
    interval = stats.bootstrap(
        (np.asarray(slow), np.asarray(fast)),
        _ratio_of_medians,
        paired=True,
        vectorized=True,
        method='percentile',
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _ratio_of_medians(slow: np.ndarray, fast: np.ndarray, axis: int) -> np.ndarray:
    return np.median(slow, axis=axis) / np.median(fast, axis=axis)
