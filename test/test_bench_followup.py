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

"""The benchmark of follow-up questions, on tiny models: what it counts and writes. Its times say nothing here."""

import json
import random
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm_reuse_node.model.noise import FACTOR

sys.path.append(str(Path(__file__).parents[1] / 'bench'))

import followup
import followup_rows
from timing import Run, in_random_order

FRAMES = 1, 2
SHAPES = 'qwen2_5_vl', 'gemma4', 'weight_bound'
ROWS = 'text choice standing_10 repeated_choice repeated_text changed changed_patch changed_patch'.split()
STATES = [(shape, frames) for shape in SHAPES for frames in FRAMES if (shape, frames) != ('weight_bound', 2)]


@pytest.fixture(scope='module')
def printed(tmp_path_factory):
    """What the benchmark prints, its lines, and what it writes."""
    output = tmp_path_factory.mktemp('bench') / 'new' / 'followup.json'
    with redirect_stdout(StringIO()) as stream:
        assert followup.main(['--tiny', '--frames', *map(str, FRAMES), '--rounds', '1', '--output', str(output)]) == 0
    return stream.getvalue().splitlines(), json.loads(output.read_text())


@pytest.fixture(scope='module')
def result(printed):
    return printed[1]


@pytest.fixture(scope='module')
def texts(result):
    return [row for row in result['rows'] if row['row'] == 'text']


def rows(result, *names):
    return [row for row in result['rows'] if row['row'] in names]


def test_every_state_has_all_rows(result):
    assert [(row['shape'], row['frames'], row['row']) for row in result['rows']] == [
        (*state, name) for state in STATES for name in ROWS
    ]
    assert [(state['shape'], state['frames']) for state in result['states']] == STATES


def test_what_belongs_together_takes_one_pass(result):
    together = rows(result, 'choice', 'standing_10', 'repeated_text', 'changed', 'changed_patch')
    assert {row['passes'] for row in together} == {1}
    assert {row['passes'] for row in rows(result, 'repeated_choice')} == {0}
    assert {row['passes'] for row in rows(result, 'text')} == {8}


def test_arms_are_timed_where_they_exist(result):
    for row in result['rows']:
        assert row['warm_ms'] > 0 and row['warm_again_ms'] > 0
        assert (row['floor_ms'] is None) == (row['row'] == 'repeated_choice')
        assert (row['in_turn_ms'] is None) == (row['row'] not in ('choice', 'changed', 'changed_patch'))
        assert (row['one_by_one_ms'] is None) == (row['row'] != 'standing_10')
        assert (row['cold_ms'] is None) == (row['row'] == 'standing_10')


def test_the_table_comes_first_and_the_json_line_last(printed):
    lines, result = printed
    assert len(lines) == 2 + len(result['rows']) + len(result['worst']) + 1
    assert 'cold/warm' in lines[1] and 'warm/floor' in lines[1]
    assert json.loads(lines[-1]) == result


def test_every_answer_is_equal_to_the_cold_one(result):
    compared = [row['equal_to_cold'] for row in result['rows'] if row['row'] != 'changed_patch']
    assert compared and all(compared)
    assert {row['equal_to_cold'] for row in rows(result, 'changed_patch')} == {None}


def test_warm_is_as_near_to_cold_as_cold_is_to_cold(result):
    for row in result['rows']:
        if not row['row'].startswith('repeated'):
            assert 0 <= row['max_logprob_difference'] < FACTOR * row['noise_floor']


def test_a_question_has_as_many_tokens_as_its_shape_says_and_an_answer_8(result):
    assert {(row['shape'], row['question_tokens']) for row in result['rows']} == {
        ('qwen2_5_vl', 12),
        ('gemma4', 12),
        ('weight_bound', 5),
    }
    assert {(row['question'], row['answer_tokens']) for row in result['rows']} == {('text', 8), ('choice', 0)}
    cells = {shape: values['cells'] for shape, values in result['shapes'].items()}
    for row in result['rows']:
        assert row['prompt_tokens'] > row['frames'] * cells[row['shape']] + row['question_tokens']


def test_ratios_are_those_of_the_times_beside_them(result):
    for row in result['rows']:
        for ratio, (one, other) in followup_rows.RATIOS.items():
            times = row[f'{one}_cpu_ms'], row[f'{other}_cpu_ms']
            assert row[ratio] == (None if None in times else times[0] / times[1])


def test_states_say_what_a_refresh_costs_and_what_is_held(result):
    for state in result['states']:
        assert state['frame_cpu_ms'] > 0 and state['full_cpu_ms'] > 0 and state['snapshot_restore_ms'] > 0
        assert state['held_bytes'] >= state['needed_bytes'] > state['ring_bytes'] >= 0
        assert (state['ring_bytes'] > 0) == (state['shape'] == 'gemma4')


def test_peers_are_asked_for_text_alone_and_their_answers_are_checked(result, texts):
    assert all(row['peers'] == {} for row in result['rows'] if row['row'] != 'text')
    for row in texts:
        assert tuple(row['peers']) == followup.PEERS
        for entry in row['peers'].values():
            assert entry['ms'] > 0 and entry['cpu_ms'] > 0 and entry['answer_right'] is True
            assert 'reason' in entry or entry['answer_right_after_new_picture'] in (True, False)
        assert row['peers']['generate']['answer_equal_to_ours']


def test_an_answer_from_a_stale_prompt_cache_shows(texts):
    reused = [row['peers']['PromptCacheState'] for row in texts if row['shape'] == 'qwen2_5_vl']
    assert all(entry['tokens_reused'] > 0 for entry in reused)
    assert all(entry['answer_right_after_new_picture'] is False for entry in reused)


def test_a_peer_that_cannot_run_is_a_reason_and_no_failure(monkeypatch):
    def run(peers, text, frames, **options):
        if list(options) == ['apc_manager']:
            raise ValueError('no\nroom')
        return Run(1.0, 1.0, 0, ([1, 2], 0))

    monkeypatch.setattr(followup.Peers, 'run', run)
    kept = SimpleNamespace(question='a', other='b', cold_runs=1)
    entries = followup.Peers(kept, [], [], True).measure(SimpleNamespace(token_ids=(1, 2)))
    assert entries['PromptCacheState']['answer_right'] and entries['APC']['ms'] is None
    assert entries['APC']['reason'] == 'ValueError: no room'
    row = dict.fromkeys((f'{arm}_cpu_ms' for arm in followup_rows.ARMS), 1.0) | dict.fromkeys(followup_rows.RATIOS, 1.0)
    row |= {'shape': 'x', 'frames': 1, 'row': 'text', 'passes': 8, 'changed_cells': None, 'equal_to_cold': False}
    printed = followup.line(row | {'peers': entries})
    assert printed.split()[-2:] == ['1.0', 'cannot'] and 'NO' in printed


def test_a_pass_of_more_tokens_is_timed_too(result):
    for values in result['shapes'].values():
        assert list(values['passes']) == ['1', '2', '4', '8', '16', '32']
        assert all(times['pass_cpu_ms'] > 0 for times in values['passes'].values())


def test_every_arm_runs_once_a_round_in_another_order_and_the_first_round_does_not_count():
    order = []

    def arm(name):
        return lambda: order.append(name) or Run(1.0, 1.0, 1, len(order))

    runs = in_random_order({name: arm(name) for name in 'abcd'}, 5, random.Random(0))
    rounds = [order[first : first + 4] for first in range(0, len(order), 4)]
    assert len(rounds) == 6 and all(sorted(each) == list('abcd') for each in rounds)
    assert len(set(map(tuple, rounds))) > 1
    assert all(len(each) == 5 and min(run.result for run in each) > 4 for each in runs.values())
