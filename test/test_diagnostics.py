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

"""What an operator reads: the level, the reason and what to do about it."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('diagnostic_msgs', reason='diagnostic_msgs is missing: install ROS 2 (make setup)')
from vlm_reuse_node.ros.camera_state import CameraState
from vlm_reuse_node.ros.diagnostics import (
    ERROR,
    OK,
    WARN,
    audit_status,
    budget_status,
    camera_status,
    camera_trouble,
    model_status,
)
from vlm_reuse_node.ros.refresh_window import RefreshWindow
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.session.drift_audit import AuditCounts

FINE = dict(name='front', topic='/front/image_raw', publishers=1, received=30, silent_s=0.03, arrival_age_s=0.01)


def camera(**changes):
    return CameraState(**FINE | changes)


def values(status):
    assert all(isinstance(pair.value, str) for pair in status.values)
    return {pair.key: pair.value for pair in status.values}


@pytest.mark.parametrize(
    'changes, level, words',
    [
        ({}, OK, ''),
        ({'received': 0, 'publishers': 0, 'silent_s': None}, WARN, 'remap front/image_raw'),
        ({'received': 0, 'silent_s': None}, WARN, 'ros2 topic info -v /front/image_raw'),
        ({'received': 0, 'silent_s': None, 'incompatible_qos': 'RELIABILITY'}, ERROR, 'RELIABILITY'),
        ({'silent_s': None, 'refused': {'step': 30}, 'last_refusal': 'step is 3.'}, ERROR, 'step is 3.'),
        ({'received': 0, 'silent_s': None, 'lost': 9}, ERROR, 'Make the publisher reliable'),
        ({'silent_s': 4.0}, WARN, 'silent'),
        ({'silent_s': 4.0, 'publishers': 0}, ERROR, 'gone'),
        (
            {'silent_s': 4.0, 'refused_in_a_row': 7, 'last_refusal': 'step is 3.'},
            ERROR,
            'All 7 since then were refused',
        ),
        ({'arrival_age_s': 3600.0}, ERROR, 'use_sim_time'),
        ({'arrival_age_s': -3600.0}, WARN, 'in the future'),
    ],
)
def test_trouble_names_the_reason_and_the_remedy(changes, level, words):
    found, message = camera_trouble(camera(**changes), max_age_s=2.0)
    assert found == level and words in message and (message == '' or message.endswith('.'))


def test_a_camera_reports_rates_ages_and_refusals_by_cause():
    before = camera(received=0)
    now = camera(received=30, dropped=4, refused={'step': 1, 'encoding': 2}, last_refusal='why.', callback_ms=(1, 2, 2))
    status = camera_status('robot/vlm', now, before, seconds=2.0, max_age_s=2.0)
    assert (status.name, status.level, status.hardware_id) == ('robot/vlm: camera front', WARN, 'front')
    assert status.message == '3 of 30 pictures were refused. The last: why.'
    assert values(status) == {
        'topic': '/front/image_raw',
        'publishers': '1',
        'rate': '15.0 Hz',
        'image age': '0.04 s',
        'pictures received': '30',
        'pictures lost': '0',
        'pictures dropped': '4',
        'pictures refused': '3',
        'refused: encoding': '2',
        'refused: step': '1',
        'callback median': '2.00 ms',
        'callback p95': '2.00 ms',
    }


def test_pictures_lost_on_the_way_are_a_warning_with_the_remedy():
    status = camera_status('vlm', camera(received=40, lost=20), camera(received=30), 1.0, 2.0)
    assert status.level == WARN and status.message.startswith('20 pictures were lost in transport while 10 arrived.')


def test_refusals_of_long_ago_are_no_warning():
    state = camera(refused={'step': 3})
    assert camera_status('vlm', state, state, 1.0, 2.0).level == OK


def refresh(paid, total=10, deferred=0, level=Level.FRAME):
    cells = np.zeros((1, total), bool)
    refreshed, debt = cells.copy(), cells.copy()
    refreshed[0, :paid], debt[0, total - deferred :] = True, True
    return Refresh('front', 1, 'lens', level, '', refreshed, debt, prefill_ms=5.0, changed=refreshed)


def test_the_refresh_budget_adds_up_the_interval():
    status = budget_status('vlm', [refresh(10, level=Level.FULL), refresh(2), refresh(0, level=Level.REUSE)], 0, 1.0)
    assert status.level == OK and status.message == '40.0 % refreshed'
    assert values(status)['visual tokens refreshed'] == '12' and values(status)['spent'] == '15.0 ms/s'
    assert values(status)['level: full'] == values(status)['level: reuse'] == '1'


def test_no_pictures_is_no_share_and_debt_is_a_warning():
    assert budget_status('vlm', [], 0, 1.0).message == 'no pictures'
    assert budget_status('vlm', [refresh(2)], 3, 1.0).level == WARN


def test_a_window_gives_every_refresh_once():
    window = RefreshWindow()
    window.add(refresh(1))
    assert len(window.take(['front'])[0]) == 1 and window.take(['front']) == ([], 0)


def test_debt_stays_until_it_is_paid_or_its_camera_leaves_or_begins_anew():
    window = RefreshWindow()
    window.add(refresh(1, deferred=3))
    assert window.take(['front'])[1] == window.take(['front', 'rear'])[1] == 3
    assert window.take(['rear'])[1] == 0  # it has left, though its last refresh may be told after that
    window.forget('front')
    assert window.take(['front'])[1] == 0


@pytest.mark.parametrize(
    'changes, level, words',
    [
        ({}, OK, 'Ready'),
        ({'waiting': {'front': 16}}, WARN, 'front'),
        ({'waiting': {'front': 9, 'rear': 9}}, OK, 'Ready'),
        ({'last_error': 'It broke.'}, ERROR, 'It broke.'),
    ],
)
def test_the_model_reports_its_queue_answers_and_errors(changes, level, words):
    stats = SimpleNamespace(
        **{
            'model': 'tiny',
            'waiting': {},
            'watches': 0,
            'answers': {'OK': 3},
            'last_error': '',
            'held': {'front': (3, 12_340_000)},
        }
        | changes
    )
    status = model_status('vlm', stats, queue_size=16)
    assert status.level == level and words in status.message and values(status)['answers: OK'] == '3'
    assert values(status)['state of front'] == '3 pictures, 12.3 MB'


def test_the_audit_tells_an_operator_what_drifted_and_what_follows():
    quiet = audit_status('vlm', {'front': AuditCounts(), 'rear': AuditCounts(answers=93)}, 0.01)
    assert quiet.level == OK and quiet.message == '93 answers audited'
    assert values(quiet)['front: drift, 95 %'] == 'not known' and values(quiet)['rear: drift, 95 %'] == '0.00 to 3.97 %'
    fallen = audit_status('vlm', {'front': AuditCounts(answers=20, drifted=3, is_trusted=False)}, 0.01)
    assert fallen.level == WARN and 'computed whole' in fallen.message
    broken = audit_status('vlm', {'front': AuditCounts(exact_answers=5, exact_drifted=1, is_trusted=False)}, 0.01)
    assert broken.level == ERROR and '1 of 5' in broken.message
