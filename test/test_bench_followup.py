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
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm_reuse_node.model.noise import FACTOR

sys.path.append(str(Path(__file__).parents[1] / 'bench'))

import followup

FRAMES = 1, 2
SHAPES = 'qwen2_5_vl', 'gemma4'


@pytest.fixture(scope='module')
def printed(tmp_path_factory):
    """What the benchmark prints, its lines, and what it writes."""
    output = tmp_path_factory.mktemp('bench') / 'new' / 'followup.json'
    with redirect_stdout(StringIO()) as stream:
        assert followup.main(['--tiny', '--frames', *map(str, FRAMES), '--repeats', '1', '--output', str(output)]) == 0
    return stream.getvalue().splitlines(), json.loads(output.read_text())


@pytest.fixture(scope='module')
def result(printed):
    return printed[1]


@pytest.fixture(scope='module')
def texts(result):
    return [row for row in result['rows'] if row['question'] == 'text']


def test_there_is_a_row_for_every_shape_number_of_pictures_and_kind_of_question(result):
    assert [(row['shape'], row['frames'], row['question']) for row in result['rows']] == [
        (shape, frames, kind) for shape in SHAPES for frames in FRAMES for kind in ('text', 'choice')
    ]
    assert [(state['shape'], state['frames']) for state in result['states']] == [
        (shape, frames) for shape in SHAPES for frames in FRAMES
    ]


def test_the_table_comes_first_and_the_json_line_last(printed):
    lines, result = printed
    assert len(lines) == 1 + len(result['rows']) + len(result['worst']) + 1
    assert 'cold/warm' in lines[0] and 'warm/floor' in lines[0]
    assert json.loads(lines[-1]) == result


def test_every_answer_is_equal_to_the_cold_one(result):
    assert all(row['equal_to_cold'] for row in result['rows'])


def test_warm_is_as_near_to_cold_as_cold_is_to_cold(result):
    assert all(0 <= row['max_logprob_difference'] < FACTOR * row['noise_floor'] for row in result['rows'])


def test_a_question_has_12_tokens_and_an_answer_8(result):
    assert {row['question_tokens'] for row in result['rows']} == {12}
    assert {(row['question'], row['answer_tokens']) for row in result['rows']} == {('text', 8), ('choice', 0)}
    cells = {shape: values['cells'] for shape, values in result['shapes'].items()}
    for row in result['rows']:
        assert row['prompt_tokens'] > row['frames'] * cells[row['shape']] + 12


def test_ratios_are_those_of_the_times_beside_them(result):
    for row in result['rows']:
        assert row['speedup'] == row['cold_ms'] / row['warm_ms']
        assert row['warm_over_floor'] == row['warm_ms'] / row['floor_ms']
        assert row['snapshot_restore_share'] == row['snapshot_restore_ms'] / row['warm_ms']


def test_states_say_what_a_refresh_costs_and_what_is_held(result):
    for state in result['states']:
        assert state['frame_ms'] > 0 and state['full_ms'] > 0
        assert state['held_bytes'] >= state['needed_bytes'] > state['ring_bytes'] >= 0
        assert (state['ring_bytes'] > 0) == (state['shape'] == 'gemma4')


def test_peers_are_asked_for_text_alone_and_their_answers_are_checked(result, texts):
    assert all(row['peers'] == {} for row in result['rows'] if row['question'] == 'choice')
    for row in texts:
        assert tuple(row['peers']) == followup.PEERS
        for entry in row['peers'].values():
            assert entry['ms'] > 0 and entry['answer_right'] is True
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
        return 1.0, [1, 2], 0

    monkeypatch.setattr(followup.Peers, 'run', run)
    kept = SimpleNamespace(question='a', other='b', cold_runs=1)
    entries = followup.Peers(kept, [], [], True).measure(SimpleNamespace(token_ids=(1, 2)))
    assert entries['PromptCacheState']['answer_right'] and entries['APC']['ms'] is None
    assert entries['APC']['reason'] == 'ValueError: no room'
    row = {
        'shape': 'x',
        'frames': 1,
        'question': 'text',
        'cold_ms': 1.0,
        'warm_ms': 1.0,
        'floor_ms': 1.0,
        'speedup': 1.0,
        'warm_over_floor': 1.0,
        'equal_to_cold': False,
        'peers': entries,
    }
    assert followup.line(row).split()[-2:] == ['1.0', 'cannot'] and 'NO' in followup.line(row)
