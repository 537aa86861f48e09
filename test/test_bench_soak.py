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

"""The soak: how it reads memory and queue, what it takes for a fault, and one short real run over DDS."""

import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from patience import PATIENCE_S
from scipy.signal import lfilter

sys.path.append(str(Path(__file__).parents[1] / 'bench'))

import soak
from soak_figures import Sample, Soak, as_json, faults, is_growing, memory_slope

SEEDS = 100


def series(growth_mb=0.0, seconds=480, seed=0, memory_s=5.0):
    """One sample a second, 60 pictures each; growth_mb: per 10,000 pictures.

    The noise is a node's: 0.2 MB that stay about memory_s seconds, and for a second now and then 4 MB less.
    """
    rng, keeps = np.random.default_rng(seed), np.exp(-1 / memory_s)
    kicks = rng.normal(0.0, 0.2 * np.sqrt(1 - keeps**2), seconds + 500)
    noise = lfilter([1], [1, -keeps], kicks)[500:] - 4.0 * (rng.random(seconds) < 0.005)
    return [
        Sample(second, 60 * second, 160 + growth_mb * 60 * second / 10_000 + float(noise[second]), 130.0, second % 3)
        for second in range(seconds)
    ]


def good(samples=None, **changed):
    """A soak in which nothing is wrong, but for what is changed."""
    samples = series() if samples is None else samples
    return replace(
        Soak(
            480.0,
            120.0,
            samples,
            36_000,
            {'received': 36_000, 'lost': 0},
            {'reuse': 36_000},
            1200,
            {'OK': 1100, 'BUSY': 100},
            [20.0] * 1200,
        ),
        **changed,
    )


@pytest.mark.parametrize('growth_mb', [0.0, 0.5, 3.0, -2.0])
def test_the_slope_is_that_of_the_memory_under_its_noise(growth_mb):
    slope = memory_slope(series(growth_mb))
    assert abs(slope.mb - growth_mb) < 0.3 and slope.low_mb < slope.mb < slope.high_mb


def test_what_comes_and_goes_is_no_growth():
    for other_mb in (200, -100):
        often = [replace(each, rss_mb=each.rss_mb + other_mb * (each.seconds % 50 > 45)) for each in series()]
        late = [replace(each, rss_mb=each.rss_mb + other_mb * (each.seconds in (470, 475))) for each in series()]
        assert all(is_growing(memory_slope(samples), 1.0) is False for samples in (often, late))


def test_an_interval_is_wider_where_less_is_known():
    short, long = (memory_slope(series(seconds=seconds)) for seconds in (60, 3600))
    assert short.high_mb - short.low_mb > 5 * (long.high_mb - long.low_mb)


@pytest.mark.parametrize('memory_s', [1.0, 5.0, 20.0, 60.0])
def test_the_interval_holds_the_true_growth_whatever_the_noise_remembers(memory_s):
    slopes = [memory_slope(series(2.0, 300, seed, memory_s)) for seed in range(SEEDS)]
    assert sum(slope.low_mb <= 2.0 <= slope.high_mb for slope in slopes) >= 0.88 * SEEDS


def verdicts(growth_mb, *arguments):
    """How often a soak with these arguments finds that memory grows by more than 1 MB, by answer."""
    args = soak.parse_arguments(list(arguments))
    soaks = (series(growth_mb, round(60 * args.minutes), seed) for seed in range(SEEDS))
    return Counter(is_growing(good(samples, warmup_s=60 * args.warmup).slope, 1.0) for samples in soaks)


def test_a_soak_of_the_default_length_can_tell():
    flat, at_the_limit, leak = verdicts(0.0), verdicts(1.0), verdicts(3.0)
    assert flat[True] == 0 and flat[False] >= 0.9 * SEEDS
    assert at_the_limit[True] <= 0.07 * SEEDS
    assert leak[True] >= 0.9 * SEEDS and leak[False] == 0


def test_one_that_is_too_short_says_so_and_finds_no_fault():
    assert verdicts(1.0, '--minutes', '1')[None] >= 0.8 * SEEDS
    for samples in (series(1.0), series(seconds=130)):
        done = good(samples)
        assert faults(done, 1.0) == [] and as_json(done, 1.0)['memory'].startswith('Not long enough to tell')
    assert f'{good(series(1.0)).slope.mb:.2f} MB' in as_json(good(series(1.0)), 1.0)['memory']


def test_without_pictures_or_samples_there_is_no_slope():
    still = [replace(sample, frames=7) for sample in series()]
    assert memory_slope([]) is memory_slope(series(seconds=7)) is memory_slope(still) is None


def test_growth_before_the_warm_up_is_over_does_not_count():
    samples = [replace(sample, rss_mb=sample.rss_mb - max(0.0, 120 - sample.seconds)) for sample in series()]
    assert is_growing(good(samples).slope, 1.0) is False
    assert is_growing(good(samples, warmup_s=0.0).slope, 1.0) is not False


@pytest.mark.parametrize(
    'changed, sentence',
    [
        ({'asked': 1201}, '1 of 1201 questions got neither an answer nor a status.'),
        ({'statuses': {'BUSY': 1200}}, 'None of 1200 questions was answered.'),
        ({'statuses': {'OK': 1199, 'MODEL_ERROR': 1}}, "1 of 1200 answers are MODEL_ERROR; see the node's log."),
        (
            {'samples': [replace(sample, waiting=2 + sample.waiting) for sample in series()]},
            'Questions pile up: in the last third never fewer than 2 waited.',
        ),
        ({'samples': series(3.0)}, 'Memory grows by '),
        ({'counts': {'received': 100, 'lost': 0}}, 'Only 100 of 36000 pictures reached the node.'),
        ({'stopped': 'the node ended'}, 'It ended early: the node ended'),
    ],
)
def test_a_fault_is_told_in_a_sentence(changed, sentence):
    assert faults(good(), 1.0) == []
    found = faults(good(**changed), 1.0)
    assert len(found) == 1 and found[0].startswith(sentence)


def test_a_refusal_is_an_answer_and_silence_is_not():
    assert good().unanswered == 0
    assert as_json(good(asked=1203), 1.0)['unanswered'] == 3


@pytest.mark.parametrize(
    'changed, exit_code', [({}, 0), ({'asked': 1201}, 1), ({'samples': series(3.0)}, 1), ({'samples': series(1.0)}, 0)]
)
def test_the_exit_code_tells_whether_anything_was_wrong(changed, exit_code, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(soak, 'soak', lambda args, check: good(**changed))
    monkeypatch.setattr(soak, 'use_own_domain', lambda: 0)
    output = tmp_path / 'new' / 'soak.json'
    assert soak.main(['--output', str(output)]) == exit_code
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == json.loads(output.read_text())
    assert len((output.parent / 'soak_samples.csv').read_text().splitlines()) == 481


@pytest.fixture
def start(model_dir, tmp_path):
    """Start a soak of the tiny model that no growth of memory fails; whatever happens it is ended, its node with it."""
    running = []

    def start(*arguments):
        command = [sys.executable, soak.__file__, '--model', str(model_dir), '--output', str(tmp_path / 'soak.json')]
        running.append(
            subprocess.Popen(
                [*command, '--max-slope', '1000', *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()


def test_a_short_soak_answers_every_question(start, tmp_path):
    process = start('--minutes', '0.1', '--warmup', '0.02', '--rate', '5')
    printed = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0, printed
    result = json.loads((tmp_path / 'soak.json').read_text())
    assert {'minutes', 'frames', 'rss_slope_mb_per_10k_frames', 'questions', 'unanswered', 'statuses'} <= set(result)
    assert result['unanswered'] == 0 and result['questions'] == sum(result['statuses'].values()) > 0
    assert 0 < result['frames_looked_at'] <= result['frames'] <= result['frames_sent']
    assert result['rss_mb_end'] > 50 and result['queue_longest'] >= result['queue_left'] == 0


def test_an_interrupted_soak_tells_what_it_has_so_far(start, tmp_path):
    process = start()
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 130 and 'Traceback' not in rest, first + rest
    result = json.loads((tmp_path / 'soak.json').read_text())
    assert result['unanswered'] == 0 and result['minutes'] < 1 and 'interrupted' in result['faults'][0]
