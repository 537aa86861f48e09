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

"""Standing questions over real DDS: added, listed, removed; asked again on change alone."""

import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
from lifecycle_msgs.msg import Transition
from patience import PATIENCE_S
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_harness import BUDGET, show, transition
from sensor_msgs.msg import RegionOfInterest
from vlm_reuse_interfaces.msg import RefreshBudget, WatchAnswer
from vlm_reuse_interfaces.srv import AddWatch, ListWatches, RemoveWatch

ANSWERS = 'vlm_reuse_node/watch_answers'
COLOURS = ['red', 'green', 'blue', 'yellow', 'one', 'two', 'three', 'four']


def adding(robot, question='what is the colour ?', choices=COLOURS, **fields):
    request = AddWatch.Request(question=question, choices=choices, **fields)
    return robot.call(AddWatch, 'vlm_reuse_node/add_watch', request)


def add(robot, **fields):
    return robot.wait(adding(robot, **fields), 'the response')


def remove(robot, watch_id):
    request = RemoveWatch.Request(watch_id=watch_id)
    return robot.wait(robot.call(RemoveWatch, 'vlm_reuse_node/remove_watch', request), 'the response')


def standing(robot):
    future = robot.call(ListWatches, 'vlm_reuse_node/list_watches', ListWatches.Request())
    return robot.wait(future, 'the list').watches


def asked(robot):
    return sum(robot.scene._worker.stats().answers.values())


def settle(robot):
    """Until the model has answered what waits: a planner's question is answered after those before it."""
    robot.until(lambda: not len(robot.scene._worker._inbox), 'the standing questions')
    robot.ask()


def test_it_is_answered_at_once_and_again_when_its_answer_changed(robot):
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    heard = robot.listen(WatchAnswer, ANSWERS, QoSProfile(depth=50))
    stamp = show(robot, camera, budgets, seed=1)
    added = add(robot)
    assert added.success and [each.watch_id for each in standing(robot)] == [added.watch_id]
    robot.until(lambda: heard, 'the first answer')
    assert heard[0].old_choice_index == -1 and heard[0].watch.answer.text in COLOURS
    assert (heard[0].header.stamp, heard[0].header.frame_id) == (stamp, 'lens')
    for seed in range(2, 40):
        show(robot, camera, budgets, seed=seed)
        settle(robot)
        if len(heard) > 1:
            break
    first, second = heard[:2]
    assert second.old_text == first.watch.answer.text != second.watch.answer.text
    assert second.old_choice_index == first.watch.answer.choice_index
    assert standing(robot)[0].answer.text == heard[-1].watch.answer.text


def test_ten_on_a_static_scene_cost_nothing_and_one_change_asks_each_once(robot):
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    show(robot, camera, budgets, seed=1)
    for _ in range(10):
        assert add(robot).success
    before = asked(robot)
    for _ in range(20):
        show(robot, camera, budgets, seed=1)
    assert asked(robot) == before == 10
    show(robot, camera, budgets, seed=2)
    robot.until(lambda: asked(robot) == 20, 'ten answers')
    show(robot, camera, budgets, seed=2)
    assert asked(robot) == 20


def test_a_region_is_asked_about_only_when_it_changed(robot):
    import numpy as np

    from vlm_reuse_node.ros.conversion import image_message
    from vlm_reuse_node.ros.messages import header_of

    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()

    def show_with(x, y):
        rgb = np.full((480, 640, 3), 90, np.uint8)
        rgb[y : y + 60, x : x + 60] = 250
        seen = len(budgets)
        camera.publish(image_message(rgb, header_of(robot.now_ns(), 'lens')))
        robot.until(lambda: len(budgets) > seen, 'a refresh budget')

    show_with(0, 0)
    assert add(robot, region=RegionOfInterest(x_offset=0, y_offset=0, width=100, height=100)).success
    assert add(robot, region=RegionOfInterest(x_offset=540, y_offset=380, width=100, height=100)).success
    settle(robot)
    before = asked(robot)
    show_with(50, 0)  # in the first region, seen at the finer grid of the model's cells
    robot.until(lambda: asked(robot) == before + 1, 'one answer')
    show_with(50, 0)
    assert asked(robot) == before + 1


def test_before_the_first_picture_it_waits_for_it(robot):
    assert add(robot).success and standing(robot)[0].answer.text == ''
    heard = robot.listen(WatchAnswer, ANSWERS)
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    robot.until(lambda: heard, 'its answer')


def test_who_subscribes_late_hears_the_newest_answer(robot):
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    add(robot)
    late = robot.listen(WatchAnswer, ANSWERS, QoSProfile(depth=9, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    robot.until(lambda: late, 'the answer of before')


def test_a_removed_one_is_asked_no_more(robot):
    budgets, camera = robot.listen(RefreshBudget, BUDGET), robot.camera()
    show(robot, camera, budgets, seed=1)
    number = add(robot).watch_id
    assert remove(robot, number).success and not standing(robot)
    before = asked(robot)
    show(robot, camera, budgets, seed=2)
    settle(robot)
    assert asked(robot) == before + 1  # that of `settle`
    again = remove(robot, number)
    assert not again.success and str(number) in again.message


@pytest.mark.parametrize(
    'fields, named',
    [
        ({'choices': []}, '2 choices'),
        ({'choices': ['red']}, '2 choices'),
        ({'choices': ['a', 'a']}, 'different'),
        ({'question': ''}, 'empty'),
        ({'question': '<|image_pad|>'}, 'image_pad'),
        ({'camera': 'rear'}, 'rear'),
        ({'margin': 2.0}, 'margin'),
        ({'region': RegionOfInterest(width=10)}, '10 x 0 px'),
    ],
)
def test_what_cannot_stand_is_refused_with_the_reason_and_leaves_none(robot, fields, named):
    response = add(robot, **fields)
    assert not response.success and named in response.message and response.watch_id == 0
    assert not standing(robot)


def test_an_empty_request_is_refused_with_what_is_missing(robot):
    empty = robot.wait(robot.call(AddWatch, 'vlm_reuse_node/add_watch', AddWatch.Request()), 'the response')
    assert not empty.success and 'at least 2 choices' in empty.message and empty.watch_id == 0
    assert not standing(robot)


def test_they_are_listed_the_oldest_first_whether_the_node_is_active_or_not(robot):
    ids = [add(robot, question=question).watch_id for question in ('what is it ?', 'what is the colour ?')]
    assert remove(robot, ids[0]).success
    ids = [ids[1], add(robot).watch_id]
    assert robot.wait(transition(robot, Transition.TRANSITION_DEACTIVATE), 'the transition').success
    assert [each.watch_id for each in standing(robot)] == ids
    refused = add(robot)
    assert not refused.success and 'activate' in refused.message
    assert robot.wait(transition(robot, Transition.TRANSITION_CLEANUP), 'the transition').success
    assert not standing(robot)


def test_more_than_may_stand_are_refused(robot, monkeypatch):
    monkeypatch.setattr('vlm_reuse_node.serving.watches.MOST_WATCHES', 1)
    assert add(robot).success
    refused = add(robot)
    assert not refused.success and 'At most 1 standing questions' in refused.message


def test_a_region_outside_the_picture_is_refused(robot):
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET), size=(48, 64))
    refused = add(robot, region=RegionOfInterest(x_offset=64, y_offset=0, width=9, height=9))
    assert not refused.success and '64 x 48 px' in refused.message
    assert add(robot, region=RegionOfInterest(x_offset=63, y_offset=0, width=9, height=9)).success


def test_a_cleanup_ends_them_all_for_late_subscribers_too(robot, brake):
    """Whoever adds one meanwhile is told that it does not stand."""
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    number = add(robot).watch_id
    brake.hold()
    asking = adding(robot, question='what is it ?')
    assert brake.held.wait(PATIENCE_S)
    worker = robot.scene._worker
    cleaned = [transition(robot, each) for each in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)]
    robot.until(lambda: not worker._inbox.is_open, 'the clean-up to begin')
    brake.go_on.set()
    assert all(robot.wait(each, 'the transition').success for each in cleaned)
    added = robot.wait(asking, 'the response')
    assert not added.success and added.message and added.watch_id == 0

    for each in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert robot.wait(transition(robot, each), 'the transition').success
    heard = robot.listen(WatchAnswer, ANSWERS, QoSProfile(depth=9, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    again = add(robot)
    robot.until(lambda: heard, 'an answer')
    assert [each.watch.watch_id for each in heard] == [again.watch_id] and again.watch_id > number
