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

"""Tokens picked from logits: by chance in the proportions that the temperature gives, and how sure the picks were."""

import mlx.core as mx
import numpy as np
import pytest

from vlm_reuse_node.model.sampling import ConfidenceSampler, likeliest, sampler

LOGITS = mx.array([0.5, 2.0, -1.0, 1.0])


def shares(temperature):
    powers = np.exp(np.array(LOGITS) / temperature)
    return powers / powers.sum()


@pytest.mark.parametrize('temperature', [0.5, 1.0, 3.0])
def test_tokens_come_as_often_as_the_temperature_makes_them_likely(temperature):
    sample, draws = sampler(temperature, seed=3), 3000
    counts = np.bincount([sample(LOGITS) for _ in range(draws)], minlength=4)
    spread = np.sqrt(shares(temperature) * (1 - shares(temperature)) / draws)
    assert (np.abs(counts / draws - shares(temperature)) < 4 * spread).all()


def test_the_seed_alone_decides_what_is_drawn():
    drawn = {}
    for seed in (0, 1, 0):
        sample = sampler(1.0, seed)
        drawn.setdefault(seed, []).append([sample(LOGITS) for _ in range(40)])
    assert drawn[0][0] == drawn[0][1] != drawn[1][0]


def test_without_temperature_the_likeliest_token_is_picked():
    assert sampler(0, seed=9)(LOGITS) == likeliest(LOGITS) == 1


def test_the_confidence_is_the_probability_of_the_least_likely_pick():
    picks = iter([1, 3, 1, 2, 0])
    confident, seen = ConfidenceSampler(lambda logits: next(picks)), []
    assert confident.least == 1.0  # nothing was picked that could be doubted
    for _ in range(5):
        token = confident(LOGITS)
        seen.append(shares(1.0)[token])
        assert confident.least == pytest.approx(min(seen), rel=100 * float(np.finfo(np.float32).eps))
    assert len(set(seen)) == 4
