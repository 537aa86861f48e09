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

"""The benchmark of a model of real size, with the tests' model. Its times say nothing here."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / 'bench'))

import keep_up
import large
import vision_share


@pytest.mark.parametrize('precision', ['bfloat16', '4-bit'])
def test_warm_and_cold_are_asked_the_same_of_as_many_pictures_as_the_row_says(tmp_path, precision, capsys):
    output = tmp_path / 'large.json'
    given = ['--tiny', '--pictures', '1', '2', '--rounds', '2', '--precision', precision, '--output', str(output)]
    assert large.main(given) == 0
    written = json.loads(output.read_text())
    one, two = written['rows']
    assert (one['pictures'], two['pictures']) == (1, 2) and two['tokens'] > 1.5 * one['tokens']
    for row in (one, two):
        for kind in ('text', 'choice'):
            assert row[kind]['equal'] == row[kind]['rounds'] == 2
            assert row[kind]['speedup'] == pytest.approx(row[kind]['cold_ms'] / row[kind]['warm_ms'])
    assert '2 pictures' in capsys.readouterr().out


def test_again_is_never_a_question_that_was_asked_before():
    """It would be remembered."""
    assert not set(large.order('warm', 20)) & set(large.order('again', 20))
    assert len(set(large.order('warm', 20))) == 21 and large.order('warm', 20) == large.order('cold', 20)


def test_vision_and_prefill_are_parts_of_a_whole(tmp_path):
    output = tmp_path / 'share.json'
    assert vision_share.main(['--tiny', '--rounds', '2', '--output', str(output)]) == 0
    written = json.loads(output.read_text())
    assert written['cells'] == 266 and 0 < written['low'] <= written['share'] <= written['high'] < 1


def test_a_real_worker_and_the_simulation_get_the_same_pictures(tmp_path, model_dir, monkeypatch):
    monkeypatch.setattr(keep_up, 'OUTPUT', tmp_path / 'keep_up.json')
    keep_up.main(['--model', str(model_dir), '--rates', '20', '--seconds', '0.5', '--period', '0.2'])
    (row,) = json.loads((tmp_path / 'keep_up.json').read_text())['rows']
    assert row['pictures'] == 10 and row['questions'] > 0
    assert 0 <= row['dropped_live'] <= 10 and 0 <= row['dropped_simulated'] <= 10
