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

"""Clocks that are set, stand still or are missing: a recording keeps its order, its length and all its pictures."""

import pytest
import recordings
import yaml
from replay_bags import BEGIN_NS, IMAGE, TYPES, message_of, scene
from rosbags.rosbag2 import StoragePlugin, Writer

from vlm_reuse_node.replay import cli, results
from vlm_reuse_node.replay.bag import NOT_NEWER, Bag, Selection
from vlm_reuse_node.replay.questions import QuestionEntry
from vlm_reuse_node.replay.schedule import Schedule
from vlm_reuse_node.scene.frame import Frame

PERIOD_S = 0.5
AN_HOUR, YEARS_54 = 3600.0, -BEGIN_NS / 1e9 + 1


def recording(folder, stamps_s, recorded_s=None):
    """A bag of pictures with these stamps, seconds from BEGIN_NS, recorded every half second or at these times."""
    recorded_s = [number * PERIOD_S for number in range(len(stamps_s))] if recorded_s is None else recorded_s
    pictures = [Frame(scene(number), nanoseconds(stamp), 'lens', 'camera') for number, stamp in enumerate(stamps_s)]
    return recordings.mcap(folder, pictures, recordings.cdr, recorded_ns=[nanoseconds(each) for each in recorded_s])


def nanoseconds(seconds):
    return BEGIN_NS + round(seconds * 1e9)


def times(path):
    """When the pictures of a bag were taken, and the bag."""
    bag = Bag(path)
    found = [bag.at_s(frame) for frame in bag.frames()]
    bag.close()
    return found, bag


REGULAR = [number * PERIOD_S for number in range(8)]


@pytest.mark.parametrize(
    'stamps_s, steps',
    [
        ([YEARS_54, *REGULAR[1:]], {'set forward': 1}),
        ([*REGULAR[:4], *(stamp - AN_HOUR for stamp in REGULAR[4:])], {'set back': 1}),
        ([*REGULAR[:4], *(stamp + AN_HOUR for stamp in REGULAR[4:])], {'set forward': 1}),
        ([*REGULAR[:4], REGULAR[4] + AN_HOUR, *REGULAR[5:]], {'set forward': 1, 'set back': 1}),
        ([YEARS_54 - 5 for _ in REGULAR], {}),  # negative stamps
        ([-nanoseconds(0) / 1e9 for _ in REGULAR], {}),  # no stamps
    ],
    ids=['early stamp', 'set back', 'set forward', 'stray stamp', 'negative', 'none'],
)
def test_a_jumping_clock_costs_no_picture_and_no_time(tmp_path, stamps_s, steps):
    found, bag = times(recording(tmp_path, stamps_s))
    assert found == pytest.approx(REGULAR, abs=1e-6) and bag.steps('camera') == steps
    assert len(bag.notes) == 1 and bag.damage == []


def test_stamps_that_stand_still_begin_a_new_stretch_by_the_recorders_clock(tmp_path):
    found, bag = times(recording(tmp_path, [0.0, 0.5, *[1.0] * 8, 5.0, 5.5]))
    assert found == [0.0, 0.5, 1.0, *(2.5 + number * PERIOD_S for number in range(7))]
    assert bag.steps('camera') == {'stood still': 1} and bag.left_out['camera'] == {NOT_NEWER: 2}


def test_a_recorders_clock_that_is_set_with_the_cameras_makes_no_gap_of_years(tmp_path):
    stamps_s = [YEARS_54, YEARS_54 + 0.5, *REGULAR[2:]]
    found, bag = times(recording(tmp_path, stamps_s, recorded_s=stamps_s))
    assert found == [0.0, 0.5, *(1.5 + number * PERIOD_S for number in range(6))] and bag.seconds == 0.0


def test_stamps_that_are_out_of_order_by_less_than_a_second_are_skipped_here_and_in_the_node(tmp_path):
    found, bag = times(recording(tmp_path, [0.0, 0.5, 1.4, 0.9, 1.5, 2.0]))
    assert found == [0.0, 0.5, 1.4, 1.5, 2.0]
    assert bag.restarts('camera') == 0 and bag.left_out['camera'] == {NOT_NEWER: 1} and bag.steps('camera') == {}


def test_a_recorder_that_falls_behind_changes_no_time(tmp_path):
    recorded_s = [*REGULAR[:3], 60.0, 60.0, 60.0, 60.1, 60.2]  # a stall of nearly a minute, then all at once
    stamps_s = [*REGULAR[:6], 59.6, 60.1]
    found, bag = times(recording(tmp_path, stamps_s, recorded_s))
    assert found == stamps_s and bag.steps('camera') == {}


def test_a_pause_is_a_gap_and_no_jump(tmp_path):
    stamps_s = [0.0, 0.5, 600.5, 601.0]
    found, bag = times(recording(tmp_path, stamps_s, recorded_s=stamps_s))
    assert found == stamps_s and bag.steps('camera') == {} and bag.notes == []


def test_a_second_camera_on_another_clock_is_placed_by_the_recorders(tmp_path):
    path = tmp_path / 'bag'
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            name: writer.add_connection(f'/{name}/image_raw', IMAGE, typestore=TYPES) for name in ('front', 'back')
        }
        for number in range(6):
            for name, ahead_s in (('front', 0.0), ('back', -AN_HOUR)):
                frame = Frame(scene(number), nanoseconds(number * PERIOD_S + ahead_s), name, name)
                data = TYPES.serialize_cdr(message_of(frame, IMAGE, True), IMAGE)
                writer.write(connections[name], nanoseconds(number * PERIOD_S + 0.1 * (name == 'back')), data)
    bag = Bag(path, Selection(topics=('/front/image_raw', '/back/image_raw')))
    found = [(frame.camera, bag.at_s(frame)) for frame in bag.frames()]
    assert [at_s for camera, at_s in found if camera == 'back'] == pytest.approx([n * PERIOD_S + 0.1 for n in range(6)])


def test_nothing_is_asked_about_a_picture_that_is_too_old_and_what_is_not_asked_is_counted():
    entries = (QuestionEntry('a', every_s=1.0), QuestionEntry('b', at_s=(3.0, 300.0)))
    schedule = Schedule(entries, 'camera', max_age_s=2.0)
    assert list(schedule.before(0.0)) == []
    assert [due.at_s for due in schedule.before(600.0)] == [0.0, 1.0]
    assert schedule.skipped == 598 + 2
    assert [due.at_s for due in schedule.before(600.5)] == [600.0]


def test_the_questions_of_54_years_are_not_listed():
    schedule = Schedule((QuestionEntry('a', every_s=0.001),), 'camera', max_age_s=2.0)
    list(schedule.before(0.0))
    due = schedule.before(54 * 365 * 86_400.0)
    assert next(due).at_s == 0.0 and sum(1 for _ in due) <= 2000 and schedule.skipped > 1e12


def test_gaps_jumps_and_skipped_questions_are_in_the_results_and_on_the_page(tmp_path, model_dir):
    stamps_s = [0.0, 0.5, 1.0, 601.0, 601.5, 1.5, 2.0, 2.5]
    recorded_s = [0.0, 0.5, 1.0, 601.0, 601.5, 602.0, 602.5, 603.0]
    questions = tmp_path / 'questions.yaml'
    questions.write_text(yaml.safe_dump({'questions': [{'question': 'what is this', 'every_s': 1.0, 'max_tokens': 2}]}))
    bag, out = recording(tmp_path, stamps_s, recorded_s), tmp_path / 'out'
    arguments = [str(bag), '--questions', str(questions), '--model', str(model_dir), '--arms', 'cold,eager']
    assert cli.main([*arguments, '--out', str(out)]) == 0
    found = results.read(out / 'results.json')
    (camera,) = found['bags'][0]['cameras']
    assert (camera['gaps'], camera['longest_gap_s'], camera['questions_skipped']) == (1, 600.0, 598)
    assert camera['clock_steps'] == {'set back': 1} and camera['pictures_used'] == 8
    assert all(row['at_s'] - row['picture_s'] < 2.0 for row in found['questions'])
    assert {row['status'] for row in found['answers']} == {'OK'}
    page = (out / 'report.html').read_text()
    assert len(found['notes']) == 2 and '598 questions' in page and 'set back once' in page
