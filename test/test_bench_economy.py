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

"""The benchmark of work over streams, on a tiny model and in counted time: the same in every run."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from tiny_model import picture

sys.path.append(str(Path(__file__).parents[1] / 'bench'))

import economy
from economy_stream import Stream, question_times

from vlm_reuse_node.config import Config
from vlm_reuse_node.session.question import Question

CAMERA_HZ, SECONDS = 10, 30.0
QUESTION = Question('how many objects are there ?', choices=('one', 'two', 'three'))
WORDS = 'what is the color of red square on left and how many objects are there'.split()
# So many that none is remembered when it comes again.
QUESTIONS = [replace(QUESTION, text=f'how many {one} {other} are there ?') for one, other in product(WORDS, WORDS)]
RATES = (0.4, 2.0)


def moving(number):
    """One cell of twelve changes with every picture."""
    frame = picture(1, size=(120, 160))
    rgb = frame.rgb.copy()
    rgb[:30, :30] = (number * 40) % 256
    return replace(frame, rgb=rgb)


def resting(number):
    """The scene changes every six seconds."""
    return moving(number // (6 * CAMERA_HZ))


def play(vlm, scene, rate, pattern='poisson', is_eager=False, seconds=SECONDS, **parameters):
    frames = [(number / CAMERA_HZ, scene(number)) for number in range(round(seconds * CAMERA_HZ))]
    times = question_times(pattern, rate, seconds, np.random.default_rng(3))
    config = Config(min_confidence=1e-9, min_text_confidence=1e-9, audit_share=0.0, **parameters)
    stream = Stream(vlm, config, is_eager=is_eager, ms_of=lambda work: work.tokens)
    tally = stream.play(frames, list(zip(times, QUESTIONS)))
    assert len(tally.latencies_ms) <= len(times) <= len(QUESTIONS) and not tally.remembered
    return tally


def ratio(tally):
    return tally.work.tokens / tally.cold_tokens


@pytest.mark.parametrize('history', [0, 3])
@pytest.mark.parametrize('scene, max_lag_s', [(moving, 0.0), (moving, 2.0), (resting, 0.0)])
@pytest.mark.parametrize('policy', ['exact', 'patch'])
def test_work_is_at_most_that_of_cold_dense_at_every_rate(vlm, scene, policy, max_lag_s, history):
    for rate in RATES:
        tally = play(vlm, scene, rate, seconds=10, refresh_policy=policy, max_lag_s=max_lag_s, history_frames=history)
        first = tally.cold_tokens / len(tally.latencies_ms) if policy == 'patch' else 0
        assert tally.work.tokens <= tally.cold_tokens + first, (rate, ratio(tally))


def test_the_eager_way_works_more_than_cold_dense_when_few_ask(vlm):
    assert ratio(play(vlm, moving, 0.5, is_eager=True)) > 2 > 1 >= ratio(play(vlm, moving, 0.5))


@pytest.mark.parametrize('pattern, rate', [('poisson', 1.0), ('steady', 1.0), ('poisson', 5.0)])
def test_where_a_lag_is_allowed_nine_of_ten_answers_are_warm(vlm, pattern, rate):
    tally = play(vlm, moving, rate, pattern, max_lag_s=2.0)
    assert tally.warm_share >= 0.9
    answer = min(tally.latencies_ms)  # nothing but the question and its choices
    assert median(tally.latencies_ms) <= 1.3 * answer
    assert max(tally.lags_s) <= 2.0 and ratio(tally) <= 0.85


def test_without_a_lag_every_answer_is_from_the_newest_picture(vlm):
    for policy in ('exact', 'patch'):
        tally = play(vlm, moving, 1.0, refresh_policy=policy)
        assert not any(tally.lags_s)
    assert ratio(tally) <= 0.7  # patch


def test_what_cold_dense_would_take_is_what_it_takes(vlm):
    for parameters in ({}, {'history_frames': 3, 'keyframe_interval_s': 0.5}):
        tally = play(vlm, moving, 0.4, **parameters)
        assert len(tally.cold_latencies_ms) == len(tally.latencies_ms)  # all of so few questions
        assert tally.cold_tokens == tally.cold.tokens and tally.cold_ms == pytest.approx(tally.cold.ms)


def test_a_scene_that_rests_makes_answers_warm_without_a_lag(vlm):
    tally = play(vlm, resting, 1.0)
    assert tally.warm_share >= 0.7 and not any(tally.lags_s) and not tally.drifted


def test_a_regular_question_finds_a_state_that_was_refreshed_for_it(vlm):
    regular = play(vlm, moving, 0.2, 'steady', seconds=60, max_lag_s=2.0)
    random = play(vlm, moving, 0.2, 'poisson', seconds=60, max_lag_s=2.0)
    assert regular.warm_share >= 1 - 1 / len(regular.latencies_ms)  # all but the first
    assert random.warm_share <= regular.warm_share + 1 / len(random.latencies_ms)


def test_the_planners_of_the_bench_have_questions_that_all_differ():
    assert len({each.text for each in economy.QUESTIONS}) == len(economy.QUESTIONS) == 36


def test_what_is_remembered_costs_nothing_and_cold_dense_the_same(vlm):
    frames = [(number / CAMERA_HZ, resting(number)) for number in range(50)]
    streams = [Stream(vlm, Config(audit_share=0.0), ms_of=lambda work: work.tokens) for _ in range(2)]
    asked = [(number / 10 + 0.05, question) for number, question in enumerate([QUESTION] * 40)]
    again, once = streams[0].play(frames, asked), streams[1].play(frames, asked[:1])
    assert (again.remembered, once.remembered) == (39, 0) and again.work.tokens == once.work.tokens
    assert again.cold_tokens == 40 * once.cold_tokens


@pytest.mark.parametrize('pattern', ['steady', 'poisson', 'burst'])
def test_questions_come_at_their_rate(pattern):
    times = question_times(pattern, 2.0, 500.0, np.random.default_rng(0))
    assert times == sorted(times) and 800 < len(times) < 1200


def test_there_is_a_row_for_every_stream_and_for_cold_dense(tmp_path, model_dir):
    output = tmp_path / 'economy.json'
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
        patch.setattr(economy, 'QUESTIONS', (QUESTION,))
        arguments = ['--model', str(model_dir), '--seconds', '2', '--cameras', '5', '--rates', '2', '--histories', '0']
        assert economy.main([*arguments, '--out', str(output)]) == 0
    rows = json.loads(output.read_text())['rows']
    assert {row['policy'] for row in rows} == {'cold', 'exact', 'patch', 'eager', 'eager_patch'}
    names = {*economy.COLUMNS, *economy.FIGURES, 'questions'}
    assert all(names <= row.keys() and row['questions'] > 0 for row in rows)
    assert len(rows) == 2 * (len(economy.POLICIES) + 1)
