"""The soak: how it reads memory and queue, what it takes for a fault, and one short real run over DDS."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from patience import PATIENCE_S

sys.path.append(str(Path(__file__).parents[1] / 'bench'))

import soak
from soak_figures import Sample, Soak, as_json, faults, memory_slope


def series(growth_mb=0.0, seconds=600, seed=0):
    """One sample a second, 60 pictures each, memory with noise and a sawtooth; growth_mb: per 10,000 pictures."""
    rng = np.random.default_rng(seed)
    return [
        Sample(
            second,
            60 * second,
            160 + growth_mb * 60 * second / 10_000 + second // 4 % 2 * 2.0 + rng.exponential(0.3),
            130.0,
            second % 3,
        )
        for second in range(seconds)
    ]


def good(samples=None, **changed):
    """A soak in which nothing is wrong, but for what is changed."""
    samples = series() if samples is None else samples
    return replace(
        Soak(
            600.0,
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
    assert abs(slope.mb - growth_mb) < 0.2
    assert slope.low_mb < slope.mb < slope.high_mb and slope.high_mb - slope.low_mb < 0.5


def test_what_comes_and_goes_is_no_growth():
    peaks = [replace(sample, rss_mb=sample.rss_mb + 200 * (sample.seconds % 50 > 45)) for sample in series()]
    late = [replace(sample, rss_mb=sample.rss_mb + 200 * (sample.seconds in (590, 595))) for sample in series()]
    assert max(abs(memory_slope(samples).mb) for samples in (peaks, late)) < 0.2


def test_an_interval_is_wider_where_less_is_known():
    short, long = (memory_slope(series(seconds=seconds)) for seconds in (60, 3600))
    assert short.high_mb - short.low_mb > 5 * (long.high_mb - long.low_mb)


def test_without_pictures_or_samples_there_is_no_slope():
    still = [replace(sample, frames=7) for sample in series()]
    assert memory_slope([]) is memory_slope(series(seconds=7)) is memory_slope(still) is None
    assert 'Too little was measured' in faults(good(series(seconds=60)), 1.0)[0]


def test_growth_before_the_warm_up_is_over_does_not_count():
    samples = [replace(sample, rss_mb=sample.rss_mb - max(0.0, 120 - sample.seconds)) for sample in series()]
    assert faults(good(samples), 1.0) == [] and len(faults(good(samples, warmup_s=0.0), 1.0)) == 1


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
        ({'samples': series(2.0)}, 'Memory grows by '),
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


@pytest.mark.parametrize('changed, exit_code', [({}, 0), ({'asked': 1201}, 1), ({'samples': series(2.0)}, 1)])
def test_the_exit_code_tells_whether_anything_was_wrong(changed, exit_code, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(soak, 'soak', lambda args, check: good(**changed))
    monkeypatch.setattr(soak, 'use_own_domain', lambda: 0)
    output = tmp_path / 'new' / 'soak.json'
    assert soak.main(['--output', str(output)]) == exit_code
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == json.loads(output.read_text())
    assert len((output.parent / 'soak_samples.csv').read_text().splitlines()) == 601


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
    process = start('--minutes', '0.2', '--warmup', '0.04')
    printed = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0, printed
    result = json.loads((tmp_path / 'soak.json').read_text())
    assert {'minutes', 'frames', 'rss_slope_mb_per_10k_frames', 'questions', 'unanswered', 'statuses'} <= set(result)
    assert result['unanswered'] == 0 and result['questions'] == sum(result['statuses'].values()) >= 12
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
