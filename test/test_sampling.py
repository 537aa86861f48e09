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
from samplers import Script

from vlm_reuse_node.model.sampling import ConfidenceSampler, Sampler, sampler

LOGITS = mx.array([0.5, 2.0, -1.0, 1.0])


def shares(temperature):
    powers = np.exp(np.array(LOGITS) / temperature)
    return powers / powers.sum()


def picks(sample, count, logits=LOGITS):
    return [sample(logits).item() for _ in range(count)]


@pytest.mark.parametrize('temperature', [0.5, 1.0, 3.0])
def test_tokens_come_as_often_as_the_temperature_makes_them_likely(temperature):
    draws = 3000
    counts = np.bincount(picks(sampler(temperature, seed=3), draws), minlength=4)
    spread = np.sqrt(shares(temperature) * (1 - shares(temperature)) / draws)
    assert (np.abs(counts / draws - shares(temperature)) < 4 * spread).all()


def test_the_seed_alone_decides_what_is_drawn():
    drawn = {}
    for seed in (0, 1, 0):
        drawn.setdefault(seed, []).append(picks(sampler(1.0, seed), 40))
    assert drawn[0][0] == drawn[0][1] != drawn[1][0]


@pytest.mark.parametrize('temperature, seed', [(0.7, 0), (1.5, 11)])
def test_a_seed_draws_what_its_chain_of_keys_draws(temperature, seed):
    """So a recorded answer can be repeated: each token has the second half of a key, the next token the first."""
    sample, key = sampler(temperature, seed), mx.random.key(seed)
    for step in range(50):
        logits = mx.random.normal((300,), key=mx.random.key(step))
        key, draw = mx.random.split(key)
        assert sample(logits).item() == mx.random.categorical(logits / temperature, key=draw).item()


def test_without_temperature_the_likeliest_token_is_picked():
    assert picks(sampler(0, seed=9), 3) == picks(Sampler(), 3) == [1, 1, 1]


def test_the_confidence_is_the_probability_of_the_least_likely_pick():
    confident, seen = ConfidenceSampler(Script([1, 3, 1, 2, 0])), []
    assert confident.least == 1.0  # nothing was picked that could be doubted
    for _ in range(5):
        seen.append(shares(1.0)[confident(LOGITS).item()])
        assert confident.least == pytest.approx(min(seen), rel=100 * float(np.finfo(np.float32).eps))
    assert len(set(seen)) == 4


@pytest.mark.parametrize('make', [Sampler, lambda: sampler(1.0, 3), lambda: ConfidenceSampler(sampler(1.0, 3))])
def test_to_pick_a_token_is_not_to_wait_for_it(make, monkeypatch):
    def read(*_):
        raise AssertionError('the host waited for the device')

    for name in ('item', 'tolist', '__int__', '__float__', '__bool__', '__index__'):
        monkeypatch.setattr(mx.array, name, read)
    monkeypatch.setattr(mx, 'eval', read)
    sample = make()
    tokens = [sample(LOGITS) for _ in range(3)]
    monkeypatch.undo()
    assert [token.shape for token in tokens] == 3 * [()] and all(0 <= token.item() < 4 for token in tokens)


def test_the_confidence_holds_no_logits():
    """The logits of a long answer would fill the memory: each step's are free once its token is picked."""
    confident, most = ConfidenceSampler(Sampler()), 0
    for step in range(20):
        logits = mx.random.normal((500_000,), key=mx.random.key(step))
        mx.eval(confident(logits))
        del logits
        most = max(most, mx.get_active_memory()) if step else (first := mx.get_active_memory())
    assert most - first < 4 * 500_000


def test_who_wraps_a_sampler_hands_on_what_was_picked():
    script = Script([3, 2])
    confident = ConfidenceSampler(script)
    for _ in range(2):
        confident.accept(confident(LOGITS).item())
    assert script.accepted == [3, 2]
