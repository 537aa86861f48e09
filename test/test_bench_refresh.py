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

"""The benchmark of refreshes and of drift, on few cases: what it counts and writes. Its times say nothing here."""

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / 'bench'))

import drift
import refresh

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.families.base import Grid
from vlm_reuse_node.session.answer import Answer, Status


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """What the cost part writes."""
    output = tmp_path_factory.mktemp('bench') / 'refresh.json'
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
        patch.setattr(refresh, 'PERCENT', (0, 5, 100))
        patch.setattr(refresh, 'FRAMES', 2)
        patch.setattr(refresh, 'WINDOW', refresh.WINDOW.with_values(history_frames=1))
        patch.setattr(refresh, 'SHAPES', {'tiny': refresh.write_qwen2_5_vl, 'recurrent': refresh.write_qwen3_5})
        patch.setattr(refresh, 'DETECTIONS', 2)
        patch.setattr(refresh.positions, 'ROUNDS', 1)
        arguments = ['--only', 'cost', '--tiny', '--repeats', '1', '--positions', '3', '--output', str(output)]
        assert refresh.main(arguments) == 0
    return json.loads(output.read_text())


def test_there_is_a_row_for_every_share_of_changed_cells(written):
    rows = written['rows']
    assert [(row['shape'], row['changed_percent'], row['cells']) for row in rows] == [
        (shape, *share) for shape in ('tiny', 'recurrent') for share in ((0, 0), (5, 1), (100, 12))
    ]
    assert all(
        row[f'{name}_{clock}'] > 0
        for row in rows
        for name in ('reuse', 'patch', 'frame', 'full')
        for clock in ('ms', 'cpu_ms')
    )
    assert rows[0]['patch_ms'] == rows[0]['reuse_ms']
    assert set(written['change_ms_p95']) == {'640x480', '1920x1080'}


def test_a_recurrent_shape_is_also_measured_where_the_change_is_elsewhere(written):
    """What it computes then begins with a row of cells, the last one that begins before the change."""
    for row in written['positions']:
        behind = 12 - 4 * (row['first_cell'] // 4)
        assert (row['shape'], row['cells'], row['computed_cells']) == ('recurrent', 1, behind)
        assert row['patch_share'] > 0 and row['noise_share'] > 0
    assert len({row['first_cell'] for row in written['positions']}) > 1


@pytest.mark.parametrize('cells', [0, 1, 3, 27, 54])
def test_a_camera_changes_as_many_cells_as_asked_for_and_no_other(cells):
    first, grid = refresh.picture(1, size=refresh.SIZE), Grid(6, 9)
    camera = refresh.RectangleCamera(first, grid, cells)
    one, two = camera.frame(), camera.frame()
    different = (one.rgb != two.rgb).any(axis=2)
    touched = {
        (int(row * grid.rows / 480), int(column * grid.columns / 640)) for row, column in zip(*np.nonzero(different))
    }
    assert camera.cells == len(touched) == cells and np.array_equal(two.rgb, first.rgb)
    assert one.stamp_ns < two.stamp_ns


@pytest.fixture(scope='module')
def rows():
    """The drift table of one short sequence."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
        patch.setattr(drift, 'PICTURES', 3)
        few = 'stale', 'exact', 'patch, no repair'
        patch.setattr(drift, 'POLICIES', {name: drift.POLICIES[name] for name in few})
        result = drift.measure('tabletop', 1)
    assert result['default_policy'] == Config().refresh_policy
    return {row['policy']: row for row in result['rows']}


def test_every_policy_is_asked_the_same_and_compared_with_the_same(rows):
    assert len({(row['questions'], row['cold_accuracy']) for row in rows.values()}) == 1
    assert rows['stale']['cells'] == 0 and rows['exact']['levels'].keys() <= {'reuse', 'frame'}
    assert rows['patch, no repair']['cells'] <= rows['exact']['cells']


def test_whole_pictures_do_not_drift(rows):
    assert rows['exact']['drifted'] == 0 and rows['exact']['accuracy'] == rows['exact']['cold_accuracy']
    assert 0 < rows['exact']['choice_drift_upper95'] < 1


def test_a_threshold_escalates_more_and_leaves_less_the_higher_it_is():
    answers = [
        Answer(Status.OK, choice_index=index, confidence=confidence)
        for index, confidence in ((0, 0.5), (1, 0.75), (0, 0.97), (1, 0.99))
    ]
    reference = Answer(Status.OK, choice_index=0)
    run = drift.PolicyRun(
        Config(),
        False,
        answer_ms=[1.0],
        answers=[drift.GradedAnswer(each, reference, each.choice_index == 0, True) for each in answers],
    )
    row = drift.summary('one', run)
    assert (row['questions'], row['drifted'], row['choice_drift'], row['accuracy']) == (4, 2, 0.5, 0.5)
    assert {each['min_confidence']: (each['escalated'], each['drift_left']) for each in row['thresholds']} == {
        0.6: (0.25, 0.5),
        0.7: (0.25, 0.5),
        0.8: (0.5, 0.25),
        0.9: (0.5, 0.25),
        0.95: (0.5, 0.25),
        0.99: (0.75, 0.25),
    }


def test_a_sequence_is_the_same_every_time_and_others_differ():
    (one, asked), (again, _), (other, _) = (next(drift.sequence(number)) for number in (0, 0, 1))
    assert np.array_equal(one.rgb, again.rgb) and not np.array_equal(one.rgb, other.rgb)
    assert all(question.answer in question.choices for question in asked)
