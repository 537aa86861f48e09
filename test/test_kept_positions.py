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

"""Models that keep the positions of a prompt as attributes: nothing of one camera reaches another one."""

import mlx.core as mx
import mlx_vlm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_model import picture
from tiny_placed import TYPES, write_tiny_placed

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model.families import generic
from vlm_reuse_node.model.families.kept_positions import KEPT, KeptPositions
from vlm_reuse_node.model.families.picture_tokens import TokenSpan
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXT = 'how many objects are there , and what is the color of the square on the left ?'
ASKED = Question(TEXT, max_tokens=6), Question('is it red ?', choices=('yes', 'no it is blue', 'red'))
SIZES = (240, 320), (320, 240)


@pytest.fixture(scope='module', params=TYPES)
def model_dir(request, tmp_path_factory):
    """A tiny model of each type."""
    return write_tiny_placed(tmp_path_factory.mktemp('models') / request.param, request.param)


@pytest.fixture(scope='module')
def vlm(model_dir):
    """The model as we load it."""
    return load(str(model_dir))


def said(answer):
    assert answer.status == Status.OK and answer.exact
    return answer.token_ids, answer.choice_index


def sessions(vlm, **settings):
    return [SceneSession(vlm, Config(**settings), f'camera{number}') for number in range(len(SIZES))]


def test_two_cameras_in_turn_answer_as_each_alone(vlm):
    """The pictures have as many tokens and other positions."""
    alone = []
    for seed, (session, size) in enumerate(zip(sessions(vlm), SIZES)):
        session.observe(picture(seed, size=size))
        alone.append([said(session.ask_cold(question, now_ns=0)) for question in ASKED])
    together = sessions(vlm)
    for seed, (session, size) in enumerate(zip(together, SIZES)):
        session.observe(picture(seed, size=size))
    for number, question in enumerate(ASKED):
        for session, expected in zip(together, alone):
            assert said(session.ask(question, now_ns=0)) == expected[number]


def test_a_history_of_two_cameras_in_turn_is_warm_as_cold(vlm):
    together = sessions(vlm, history_frames=2, keyframe_interval_s=0.5)
    for step in range(4):
        for number, (session, size) in enumerate(zip(together, SIZES)):
            session.look(picture(10 * number + step, size=size, stamp_s=step))
        for question in ASKED:
            for session in together:
                warm, cold = (ask(question, now_ns=int(step * 1e9)) for ask in (session.ask, session.ask_cold))
                assert said(warm) == said(cold)
    assert [session.status.frames for session in together] == [1 if vlm.family.one_picture else 3] * 2


def test_what_the_attributes_hold_is_no_matter(vlm):
    session = SceneSession(vlm, Config())
    language = vlm._model.language_model
    for step, level in enumerate((Level.FULL, Level.FRAME)):
        assert session.observe(picture(step, stamp_s=step)).level == level
        expected = [said(session.ask_cold(question, now_ns=0)) for question in ASKED]
        for name in KEPT:
            if hasattr(language, name):
                setattr(language, name, mx.full((3, 1, 4096), 77))
        assert [said(session.ask(question, now_ns=0)) for question in ASKED] == expected


def test_a_snapshot_is_restored_bit_for_bit(vlm):
    session = SceneSession(vlm, Config())
    session.observe(picture(1))

    def rows():
        kept = [entry.state for entry in session._refresher.state.cache]
        return [np.array(array).tobytes() for _, array in tree_flatten(kept)]

    before = rows()
    for question in ASKED:
        session.ask(question, now_ns=0)
        assert rows() == before


def test_positions_are_those_that_mlx_vlm_computes(vlm, model_dir):
    """Of a prompt with a text, a picture and a text behind it; the picture advances by less than its tokens."""
    family, template = vlm.family, vlm.template('', 1)
    grid = vlm.grid(picture(1).rgb)
    ids = family.expand(template.prefix + template.question(TEXT), [grid])
    found = family.positions(ids, [grid])
    if not grid.size:
        assert np.array_equal(found, family.text_positions(0, len(ids)))
        return
    language = mlx_vlm.load(str(model_dir))[0].language_model
    theirs = np.array(language.get_rope_index(mx.array([ids]), image_grid_thw=mx.array([grid.size]))[0])
    assert sorted(found.ravel()) == sorted(theirs.ravel()) and found.shape == (3, len(ids))
    assert found.max() + 1 < len(ids) and np.ptp(found[:, -1]) == 0
    upright = TokenSpan(*grid, grid.ids, (1, grid.size[2], grid.size[1]))
    assert upright != grid and not np.array_equal(family.positions(ids, [upright]), found)


def test_a_picture_s_question_and_choices_are_one_pass(vlm):
    assert vlm.family.branches
    session = SceneSession(vlm, Config())
    session.look(picture(1))
    before = vlm.meter.done
    session.ask(ASKED[1], now_ns=0)
    assert (vlm.meter.done - before).passes == 1


def test_a_model_without_a_rule_for_its_positions_is_refused(model_dir, monkeypatch):
    model, processor = mlx_vlm.load(str(model_dir))
    monkeypatch.delattr(type(model.language_model), 'get_rope_index')
    with pytest.raises(ModelError, match='keeps positions, which the next camera would inherit'):
        generic.Family(model, processor)


def test_a_model_that_does_not_take_the_positions_it_is_handed_is_refused(model_dir, monkeypatch):
    monkeypatch.setattr(KeptPositions, 'handed', lambda self, positions: self.forget() or {})
    with pytest.raises(ModelError, match='off those of mlx_vlm.generate|does not go through'):
        load(str(model_dir))
