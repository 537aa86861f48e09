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
from vlm_reuse_node.ros.camera_diagnostics import camera_notices, camera_status, camera_trouble
from vlm_reuse_node.ros.camera_state import CameraState
from vlm_reuse_node.ros.diagnostics import (
    ERROR,
    OK,
    WARN,
    audit_status,
    budget_status,
    model_status,
)
from vlm_reuse_node.ros.refresh_window import RefreshWindow
from vlm_reuse_node.ros.stamps import NONE
from vlm_reuse_node.scene.refresh import Level, Refresh, Totals
from vlm_reuse_node.session.drift_audit import AuditCounts
from vlm_reuse_node.session.drift_bounds import DriftCount
from vlm_reuse_node.session.session_status import SessionStatus

FINE = dict(
    name='front', topic='/front/image_raw', publishers=('/driver',), received=30, silent_s=0.03, arrival_age_s=0.01
)


def camera(**changes):
    return CameraState(**FINE | changes)


def values(status):
    assert all(isinstance(pair.value, str) for pair in status.values)
    return {pair.key: pair.value for pair in status.values}


@pytest.mark.parametrize(
    'changes, level, words',
    [
        ({}, OK, ''),
        ({'received': 0, 'publishers': (), 'silent_s': None, 'hint': 'Do this.'}, WARN, 'Do this.'),
        ({'received': 0, 'silent_s': None}, WARN, 'ros2 topic info -v /front/image_raw'),
        ({'received': 0, 'silent_s': None, 'incompatible_qos': 'RELIABILITY'}, ERROR, 'RELIABILITY'),
        ({'silent_s': None, 'refused': {'step': 30}, 'last_refusal': 'step is 3.'}, ERROR, 'step is 3.'),
        ({'received': 0, 'silent_s': None, 'lost': 9, 'way': 'Fast DDS, UDP'}, ERROR, 'Fast DDS'),
        ({'silent_s': 4.0}, WARN, 'silent'),
        ({'silent_s': 4.0, 'publishers': ()}, ERROR, 'gone'),
        ({'silent_s': 4.0, 'lost_since': 3}, ERROR, '3 were lost on their way'),
        (
            {'silent_s': 4.0, 'refused_in_a_row': 7, 'last_refusal': 'step is 3.'},
            ERROR,
            'All 7 since then were refused',
        ),
        ({'arrival_age_s': 3600.0}, ERROR, 'use_sim_time'),
        ({'arrival_age_s': -3600.0}, WARN, 'in the future'),
        ({'arrival_age_s': -3600.0, 'clock': 'No time.'}, WARN, 'No time.'),
        ({'silent_s': 4.0, 'publishers': (), 'clock': 'No time.'}, ERROR, 'gone'),
    ],
)
def test_trouble_names_the_reason_and_the_remedy(changes, level, words):
    found, message = camera_trouble(camera(**changes), max_age_s=2.0)
    assert found == level and words in message and (message == '' or message.endswith('.'))


def test_a_camera_reports_rates_ages_and_refusals_by_cause():
    before = camera(received=0)
    now = camera(received=30, dropped=4, refused={'step': 1, 'encoding': 2}, last_refusal='why.', callback_ms=(1, 2, 2))
    status = camera_status('robot/vlm', now, [before], seconds=2.0, max_age_s=2.0)
    assert (status.name, status.level, status.hardware_id) == ('robot/vlm: camera front', WARN, 'front')
    assert status.message == '3 of 30 pictures were refused. The last: why.'
    assert values(status) == {
        'topic': '/front/image_raw',
        'publishers': '1',
        'transport': 'no publisher',
        'rate': '15.0 Hz',
        'image age': '0.04 s',
        'pictures received': '30',
        'pictures lost': '0',
        'pictures dropped': '4',
        'pictures missed': '0',
        'pictures refused': '3',
        'refused: encoding': '2',
        'refused: step': '1',
        'callback median': '2.00 ms',
        'callback p95': '2.00 ms',
    }


@pytest.mark.parametrize('changes', [{'lost': 20}, {'missed': 20}, {'missed': 20, 'lost': 3}])
def test_pictures_lost_on_the_way_are_a_warning_with_the_remedy(changes):
    state = camera(**{'received': 40, 'way': 'Fast DDS, shared memory'} | changes)
    status = camera_status('vlm', state, [camera(received=30)], 1.0, 2.0)
    assert status.level == WARN
    assert status.message.startswith('20 pictures were lost between /driver and this node while 10 arrived (Fast DDS')
    assert 'config/fastdds_large_pictures.xml' in status.message and 'compressed' in status.message
    (notice,) = camera_notices(state, [camera(received=30)]).values()
    assert status.message in notice


@pytest.mark.parametrize(
    'changes',
    [{}, {'dropped': 20}, {'missed': 20, 'busy': 0.5}, {'missed': 2}, {'lost': 1}, {'received': 31}],
)
def test_pictures_that_a_busy_node_or_a_slow_driver_leaves_out_are_no_loss(changes):
    state, before = camera(**{'received': 40} | changes), camera(received=30)
    assert camera_status('vlm', state, [before], 1.0, 2.0).level == OK and camera_notices(state, [before]) == {}


def test_two_publishers_on_one_topic_and_stamps_that_tell_nothing_are_warnings():
    status = camera_status('vlm', camera(publishers=('/one', '/two'), mixed=3, stamps=NONE), [camera()], 1.0, 2.0)
    assert status.level == WARN and '/one, /two' in status.message and NONE in status.message


def test_a_killed_driver_that_the_graph_still_shows_beside_its_successor_is_no_warning():
    state = camera(publishers=('/driver', '/driver'))
    assert camera_status('vlm', state, [camera()], 1.0, 2.0).level == OK and camera_notices(state, [camera()]) == {}


def test_refusals_of_long_ago_are_no_warning():
    state = camera(refused={'step': 3})
    assert camera_status('vlm', state, [state], 1.0, 2.0).level == OK


def refresh(paid, total=10, stale=0, level=Level.FRAME):
    cells = np.zeros((1, total), bool)
    refreshed, waiting = cells.copy(), cells.copy()
    refreshed[0, :paid], waiting[0, total - stale :] = True, True
    return Refresh('front', 1, 'lens', level, '', refreshed, waiting, prefill_ms=5.0, changed=refreshed)


def look(stale=0):
    return refresh(0, stale=stale, level=Level.REUSE)


def session(work_ms=0.0, cold_ms=0.0, credit_ms=0.0):
    return SessionStatus(totals=Totals(work_ms, cold_ms, credit_ms))


def test_the_refresh_budget_adds_up_the_interval_and_counts_a_picture_once():
    """Five pictures were looked at; two of them were computed too, which is told by messages of their own."""
    shown = [look(), refresh(10, level=Level.FULL), look(3), refresh(2, level=Level.PATCH), look(), look(), look()]
    status = budget_status('vlm', shown, 0, {}, 2.0)
    assert status.level == OK and status.message.startswith('2.5 pictures/s looked at, 12 visual tokens refreshed;')
    found = values(status)
    assert (found['pictures looked at'], found['visual tokens'], found['refreshed']) == ('2.5 Hz', '50', '24.0 %')
    assert found['visual tokens refreshed'] == '12' and found['spent'] == '17.5 ms/s'
    assert (found['level: full'], found['level: patch'], found['level: reuse']) == ('1', '1', '5')


def test_without_pictures_or_questions_there_is_no_share_and_no_ratio():
    status = budget_status('vlm', [], 0, {'front': session()}, 1.0)
    assert (status.level, status.message) == (OK, 'no pictures; no question yet')
    assert (
        values(status)['refreshed'] == 'no pictures' and values(status)['front: work / cold-dense'] == 'no question yet'
    )
    refreshed = budget_status('vlm', [refresh(10)], 0, {}, 1.0)  # of a picture of the interval before
    assert 'pictures/s' in refreshed.message and values(refreshed)['visual tokens refreshed'] == '10'


def test_stale_cells_are_told_and_are_no_warning():
    """They wait for somebody to ask."""
    status = budget_status('vlm', [look(stale=7)], 7, {'front': session()}, 1.0)
    assert status.level == OK and values(status)['visual tokens stale'] == '7'


def test_the_work_is_told_against_cold_dense_for_each_camera_and_for_all():
    sessions = {'front': session(300, 400, 100), 'rear': session(100, 100), 'side': session()}
    status = budget_status('vlm', [look()], 0, sessions, 1.0)
    assert status.message.endswith('; 0.80 times the work of cold-dense (front 0.75, rear 1.00)')
    found = values(status)
    assert [found[f'front: {name}'] for name in ('work', 'work of cold-dense', 'work / cold-dense', 'credit')] == [
        '300 ms',
        '400 ms',
        '0.75',
        '100 ms',
    ]
    assert found['side: work / cold-dense'] == 'no question yet'
    one = budget_status('vlm', [look()], 0, {'front': sessions['front']}, 1.0)
    assert one.message.endswith('; 0.75 times the work of cold-dense')


def test_a_window_gives_every_refresh_once():
    window = RefreshWindow()
    window.add(refresh(1))
    assert len(window.take(['front'])[0]) == 1 and window.take(['front']) == ([], 0)


def test_stale_tokens_stay_until_they_are_refreshed_or_their_camera_leaves_or_begins_anew():
    window = RefreshWindow()
    window.add(look(stale=5))
    window.add(refresh(2, stale=3))
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
            'remembered': 2,
            'last_error': '',
            'sessions': {'front': SessionStatus(frames=3, held_bytes=12_340_000)},
        }
        | changes
    )
    status = model_status('vlm', stats, queue_size=16)
    assert status.level == level and words in status.message and values(status)['answers: OK'] == '3'
    assert values(status)['remembered answers'] == '2'
    assert values(status)['state of front'] == '3 pictures, 12.3 MB'


def test_the_audit_tells_an_operator_what_drifted_and_what_follows():
    def audited(**cameras):
        sessions = {camera: SessionStatus(audits=AuditCounts(**counts)) for camera, counts in cameras.items()}
        return audit_status('vlm', sessions, 0.01)

    quiet = audited(front={'exact_answers': 7}, rear={'choices': DriftCount(93), 'texts': DriftCount(10, 1)})
    assert quiet.level == OK and quiet.message == '110 answers audited, 103 of them from patched states'
    assert values(quiet)['front: patched, choices'] == 'none audited'
    assert values(quiet)['rear: patched, choices'] == '0 of 93 drifted, 0.00 to 3.89 % (95 %)'
    assert values(quiet)['rear: patched, texts'].startswith('1 of 10 drifted')
    fallen = audited(front={'texts': DriftCount(20, 3), 'is_trusted': False})
    assert fallen.level == WARN and 'computed whole' in fallen.message
    broken = audited(front={'exact_answers': 5, 'exact_drifted': 1, 'is_trusted': False})
    assert broken.level == ERROR and '1 of 5' in broken.message


def test_the_audit_says_which_policy_is_used_and_why_and_warns_of_a_refused_calibration():
    used = SessionStatus(policy='patch', policy_reason='Choices may be patched.')
    shown = audit_status('vlm', {'front': used}, 0.01)
    assert shown.level == OK
    assert values(shown)['front: refresh policy'] == 'patch' and values(shown)['front: because'] == used.policy_reason
    refused = SessionStatus(policy='exact', policy_reason='It is of another model.', is_calibration_refused=True)
    shown = audit_status('vlm', {'front': used, 'rear': refused}, 0.01)
    assert shown.level == WARN and 'another model' in shown.message and 'rear' in shown.message
