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

"""Standing questions: asked again only for what they depend on, told only when the answer is another one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.serving.watch import Region, Watch
from vlm_reuse_node.serving.watches import MOST_WATCHES, Watches
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question

FRAME = Frame(np.zeros((40, 60, 3), np.uint8), stamp_ns=5, camera='front')
DOOR = Watch(0, 'front', Question('is the door open ?', ('yes', 'no')))


def refresh(*changed):
    """A refresh of all 4 x 6 cells of 10 px, of which these (row, column) changed."""
    cells = np.zeros((4, 6), bool)
    for cell in changed:
        cells[cell] = True
    return Refresh('front', 5, '', Level.FRAME, '', np.ones((4, 6), bool), np.zeros((4, 6), bool), changed=cells)


def look(*stale, lag_s=0.1):
    """A look at a picture from which these cells of the state have differed for so long."""
    record = refresh(*stale)
    return replace(record, level=Level.REUSE, refreshed=~np.ones((4, 6), bool), stale=record.changed, lag_s=lag_s)


def answer(yes, status=Status.OK, exact=True):
    return Answer(status, choice_index=0 if yes >= 0.5 else 1, choice_scores=(yes, 1 - yes), exact=exact)


class Model:
    """Takes the questions; `say` answers the one that waits."""

    def __init__(self):
        self.asked, self.told = [], []
        self.watches = Watches(self.ask, lambda watch, old: self.told.append((watch, old)))

    def ask(self, watch, now_ns, future):
        self.asked.append((watch.watch_id, now_ns, future))

    def say(self, *answers):
        for each in answers:
            self.asked[-1][2].set_result(each)


@pytest.fixture
def model():
    return Model()


def test_it_is_asked_at_once_and_its_first_answer_is_told(model):
    watch, future = model.watches.add(DOOR, 7)
    assert watch.watch_id > 0 and [(number, now_ns) for number, now_ns, _ in model.asked] == [(watch.watch_id, 7)]
    model.say(answer(0.9))
    assert future.result().choice_index == 0 and model.told == [(model.watches.all()[0], None)]


def test_ten_on_a_static_scene_cost_nothing(model):
    for _ in range(10):
        model.watches.add(DOOR, 0)
        model.say(answer(0.9))
    for _ in range(50):
        model.watches.see(FRAME, refresh())
    assert len(model.asked) == 10


def test_a_change_asks_again_and_only_another_answer_is_told(model):
    model.watches.add(DOOR, 0)
    model.say(answer(0.9))
    for yes in (0.8, 0.2, 0.1):
        model.watches.see(FRAME, refresh((1, 1)))
        model.say(answer(yes))
    assert len(model.asked) == 4
    assert [(watch.answer.choice_index, old and old.choice_index) for watch, old in model.told] == [(0, None), (1, 0)]


def test_it_waits_at_the_model_only_once(model):
    model.watches.add(DOOR, 0)
    for _ in range(3):
        model.watches.see(FRAME, refresh((0, 0)))
    assert len(model.asked) == 1


@pytest.mark.parametrize('stamp_ns, asked', [(4, 2), (5, 1), (6, 1)])
def test_a_change_that_comes_during_its_answer_is_not_lost_and_not_asked_about_twice(model, stamp_ns, asked):
    """Even if no other picture comes. The answer may know the change already, when the question had to wait."""
    model.watches.add(DOOR, 0)
    model.watches.see(FRAME, look((1, 1)))
    model.watches.see(replace(FRAME, stamp_ns=9), look())  # the same again
    model.say(replace(answer(0.9), stamp_ns=stamp_ns))
    assert len(model.asked) == asked and len(model.told) == 1
    if asked == 2:
        assert model.asked[-1][1] == FRAME.stamp_ns
        model.say(replace(answer(0.1), stamp_ns=5))
        assert len(model.asked) == 2 and len(model.told) == 2


@pytest.mark.parametrize('record', [look((3, 5)), look(), look((1, 1), lag_s=1.0)])
def test_what_does_not_affect_it_during_its_answer_asks_nothing(model, record):
    question = replace(DOOR.question, max_lag_s=2.0)
    model.watches.add(Watch(0, 'front', question, region=Region(25, 15, 10, 12)), 0)
    model.watches.see(FRAME, record)
    model.say(answer(0.9))
    assert len(model.asked) == 1


@pytest.mark.parametrize('scores, told', [((0.9, 0.45, 0.29), 2), ((0.9, 0.45, 0.31), 1), ((0.9, 0.45, 0.1, 0.55), 2)])
def test_hysteresis_needs_the_margin(model, scores, told):
    model.watches.add(Watch(0, 'front', DOOR.question, margin=0.4), 0)
    model.say(answer(scores[0]))
    for yes in scores[1:]:
        model.watches.see(FRAME, refresh((0, 0)))
        model.say(answer(yes))
    assert len(model.told) == told


@pytest.mark.parametrize('margin, told', [(0.25, 2), (0.5, 2), (0.51, 1), (1.0, 1)])
def test_a_choice_that_leads_by_exactly_the_margin_takes_the_place(model, margin, told):
    model.watches.add(replace(DOOR, margin=margin), 0)
    model.say(answer(0.75))
    model.watches.see(FRAME, refresh((0, 0)))
    model.say(answer(0.25))
    assert len(model.told) == told


@pytest.mark.parametrize('cell, asked', [((1, 2), 2), ((2, 3), 2), ((0, 2), 1), ((1, 1), 1), ((3, 5), 1)])
def test_only_cells_of_the_region_count(model, cell, asked):
    model.watches.add(Watch(0, 'front', DOOR.question, region=Region(25, 15, 10, 12)), 0)
    model.say(answer(0.9))
    model.watches.see(FRAME, refresh(cell))
    assert len(model.asked) == asked


@pytest.mark.parametrize('cell, asked', [((1, 2), 2), ((2, 3), 2), ((0, 2), 1), ((3, 5), 1)])
def test_a_look_asks_for_stale_cells_of_the_region_only(model, cell, asked):
    """Before any model has computed them: the question itself brings the state up to date."""
    model.watches.add(Watch(0, 'front', DOOR.question, region=Region(25, 15, 10, 12)), 0)
    model.say(answer(0.9))
    model.watches.see(FRAME, look(cell))
    assert len(model.asked) == asked


@pytest.mark.parametrize('own_s, nodes_s', [(2.0, 0.0), (0.0, 2.0), (2.0, 9.0)])
def test_one_that_allows_a_lag_is_asked_after_it_and_not_before(model, own_s, nodes_s):
    """By its own lag, or else by the node's. At the limit the kept state would answer as before."""
    model.watches.add(replace(DOOR, question=replace(DOOR.question, max_lag_s=own_s)), 0)
    model.say(answer(0.9))
    for lag_s in (0.1, 1.9, 2.0):
        model.watches.see(FRAME, look((0, 0), lag_s=lag_s), nodes_s)
        assert len(model.asked) == 1
    model.watches.see(FRAME, look((0, 0), lag_s=2.1), nodes_s)
    assert len(model.asked) == 2


def test_one_that_allows_a_lag_is_asked_at_once_after_a_refresh_and_without_a_state(model):
    """What another question has paid for is known at no cost; and a state that is gone has no lag."""
    model.watches.add(replace(DOOR, question=replace(DOOR.question, max_lag_s=2.0)), 0)
    model.say(answer(0.9))
    model.watches.see(FRAME, refresh((0, 0)))
    model.say(answer(0.9))
    model.watches.see(FRAME, look((0, 0), (3, 3), lag_s=0.0))
    assert len(model.asked) == 3


def test_a_region_begins_in_the_corner_unless_said_otherwise():
    touched = [
        [Region(width=10, height=10).touches(refresh((row, column)).changed, FRAME.size) for column in range(6)]
        for row in range(4)
    ]
    assert np.argwhere(touched).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    'x, y, stands', [(59, 39, True), (45, 0, True), (60, 0, False), (0, 40, False), (60, 40, False)]
)
def test_a_region_must_begin_in_the_picture(model, x, y, stands):
    watch = replace(DOOR, region=Region(x, y, 9, 9))
    if stands:
        model.watches.add(watch, 0, FRAME.size)
    else:
        with pytest.raises(InvalidRequestError, match=f'at {x}, {y}, outside the picture of 60 x 40 px'):
            model.watches.add(watch, 0, FRAME.size)
    assert len(model.asked) == stands
    model.watches.add(watch, 0)  # where no picture is known yet, nothing can be said


def test_another_cameras_picture_changes_nothing(model):
    model.watches.add(DOOR, 0)
    model.say(answer(0.9))
    model.watches.see(Frame(FRAME.rgb, camera='rear'), refresh((0, 0)))
    assert len(model.asked) == 1


@pytest.mark.parametrize('status', [Status.NO_IMAGE, Status.MODEL_ERROR, Status.CANCELLED])
def test_without_an_answer_it_is_asked_with_the_next_picture(model, status):
    model.watches.add(DOOR, 0)
    model.say(Answer(status))
    assert not model.told
    model.watches.see(FRAME, refresh())
    model.say(answer(0.9))
    model.watches.see(FRAME, refresh())
    assert len(model.asked) == 2 and len(model.told) == 1


def test_a_removed_one_is_cancelled_and_says_no_more(model):
    watch, future = model.watches.add(DOOR, 0)
    model.watches.remove(watch.watch_id)
    assert future.cancelled() and not model.watches.all()
    model.watches.see(FRAME, refresh((0, 0)))
    assert len(model.asked) == 1 and not model.told
    assert model.watches.add(DOOR, 0)[0].watch_id == watch.watch_id + 1


@pytest.mark.parametrize(
    'watch, named',
    [
        (Watch(0, 'front', Question('what ?')), '2 choices'),
        (Watch(0, 'front', Question('a ?', ('b',))), 'got 1'),
        (Watch(0, 'front', DOOR.question, margin=1.5), '1.5'),
        (Watch(0, 'front', DOOR.question, margin=-1.0), 'margin'),
        (Watch(0, 'front', DOOR.question, margin=float('nan')), 'nan'),
        (Watch(0, 'front', DOOR.question, region=Region(0, 0, 60, 0)), '60 x 0 px'),
        (Watch(0, 'front', DOOR.question, region=Region(5, 5, 0, 9)), '0 x 9 px'),
    ],
)
def test_what_cannot_stand_is_refused_with_the_reason(model, watch, named):
    with pytest.raises(InvalidRequestError, match=named):
        model.watches.add(watch, 0)
    assert not model.watches.all() and not model.asked


def test_removing_what_is_not_there_says_what_is(model):
    watch, _ = model.watches.add(DOOR, 0)
    with pytest.raises(InvalidRequestError, match=rf'question 0; known are \[{watch.watch_id}\]'):
        model.watches.remove(0)


def test_one_that_cannot_be_asked_is_not_asked_with_every_picture(model):
    model.watches.add(DOOR, 0)
    model.say(Answer(Status.INVALID_REQUEST))
    for _ in range(3):
        model.watches.see(FRAME, refresh())
    assert len(model.asked) == 1
    model.watches.see(FRAME, refresh((0, 0)))  # as when its camera comes back
    assert len(model.asked) == 2


def test_an_answer_from_a_patched_state_is_given_again_once_from_a_whole_one(model):
    model.watches.add(DOOR, 0)
    model.say(answer(0.9, exact=False))
    model.watches.see(FRAME, replace(refresh(), level=Level.PATCH))
    model.watches.see(FRAME, replace(refresh(), level=Level.REUSE))
    assert len(model.asked) == 1
    model.watches.see(FRAME, refresh())
    assert len(model.asked) == 2
    model.say(answer(0.1))
    model.watches.see(FRAME, refresh())
    assert len(model.asked) == 2 and [watch.answer.choice_index for watch, _ in model.told] == [0, 1]


def test_a_change_that_comes_right_after_the_first_answer_is_not_lost():
    """The model answers, and sees another picture, before `add` has returned."""
    asked = []

    def ask(watch, now_ns, future):
        asked.append(watch.watch_id)
        if len(asked) == 1:
            future.set_result(answer(0.9))
            watches.see(FRAME, refresh((0, 0)))

    watches = Watches(ask, lambda watch, before: None)
    watches.add(DOOR, 0)
    assert len(asked) == 2


def test_ids_are_not_given_again_by_another_list(model):
    first, _ = model.watches.add(DOOR, 0)
    assert Model().watches.add(DOOR, 0)[0].watch_id > first.watch_id


def test_as_many_stand_as_the_documentation_says_and_no_more(model):
    watches = [model.watches.add(DOOR, 0)[0] for _ in range(MOST_WATCHES)]
    with pytest.raises(InvalidRequestError, match=f'{MOST_WATCHES} standing questions'):
        model.watches.add(DOOR, 0)
    assert len(model.watches.all()) == len(model.asked) == MOST_WATCHES
    model.watches.remove(watches[0].watch_id)
    model.watches.add(DOOR, 0)
    assert f'| standing questions | {MOST_WATCHES} |' in Path('docs/security.md').read_text()


@pytest.mark.parametrize('said', [None, Answer(Status.MODEL_ERROR), answer(0.9, exact=False), answer(0.9)])
def test_nothing_is_held_for_one_that_was_removed(model, said):
    watch, _ = model.watches.add(DOOR, 0)
    model.watches.see(FRAME, look((1, 1)))
    if said:
        model.say(said)
    model.watches.remove(watch.watch_id)
    assert not any(each for each in vars(model.watches).values() if isinstance(each, dict | set))


@pytest.mark.parametrize('received_ns, asked_ns', [(0, 5), (9, 9)])
def test_it_is_asked_at_the_time_when_the_picture_came(model, received_ns, asked_ns):
    """By the asking clock, where that is known, and not by the camera's."""
    model.watches.add(DOOR, 0)
    model.say(answer(0.9))
    model.watches.see(replace(FRAME, received_ns=received_ns), refresh((0, 0)))
    assert model.asked[-1][1] == asked_ns
