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

"""Model types whose prompts or vision differ from the others', against `mlx_vlm.generate`."""

import mlx_vlm
import numpy as np
import pytest
import tiny_placed
import tiny_popular
from mlx_vlm.models.phi3_v.vision import VisionModel
from PIL import Image
from tiny_model import picture, write_tiny_qwen2
from tiny_seeing import write_tiny_seeing

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError, ModelError
from vlm_reuse_node.model.chat import rendered
from vlm_reuse_node.model.families import generic, qwen2_vl
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXT = 'how many objects are there , and what is the color of the square on the left ?'
POPULAR = 'smolvlm', 'mistral3', 'kimi_vl'
TYPES = 'llava_onevision', 'internvl_chat', 'gemma3', 'qwen2_vl', *POPULAR, *tiny_placed.TYPES
# Refused when a tiny model of it is loaded: what the error says, and what is behind it.
REFUSED = {
    'idefics2': ('changes more of a chat', 'its processor puts a space between a picture and a text right behind it'),
    'llava_next': ('rows of the', 'mlx-vlm makes other rows of a picture than its processor has tokens'),
    'paligemma': ('changes more of a chat', 'it reads pictures and question in both directions, as one prefix'),
    'phi3_v': ('changes more of a chat', 'its processor drops the first token behind a picture'),
}
# mlx-vlm's processor fails on two pictures.
ONE_PICTURE = ('paddleocr_vl',)
# Heights and widths of cameras and screens.
SIZES = [
    (240, 320),
    (480, 640),
    (600, 800),
    (720, 1280),
    (1080, 1920),
    (768, 1024),
    (640, 480),
    (1920, 1080),
    (500, 500),
    (376, 672),
    (400, 848),
]


def write(folder, model_type):
    if model_type in tiny_placed.TYPES:
        return tiny_placed.write_tiny_placed(folder, model_type)
    if model_type in tiny_popular.TYPES:
        return tiny_popular.write_tiny_popular(folder, model_type)
    return write_tiny_qwen2(folder) if model_type == 'qwen2_vl' else write_tiny_seeing(folder, model_type)


@pytest.fixture(scope='module', params=TYPES)
def model_dir(request, tmp_path_factory):
    """A tiny model of each type."""
    return write(tmp_path_factory.mktemp('models') / request.param, request.param)


@pytest.fixture(scope='module')
def vlm(model_dir):
    """The model as we load it."""
    return load(str(model_dir))


@pytest.fixture(scope='module')
def upstream(model_dir):
    """Model and processor as a user of mlx-vlm has them, loaded apart from ours."""
    return mlx_vlm.load(str(model_dir))


@pytest.mark.parametrize('size', [(240, 320), (1080, 1920), (640, 480)])
def test_an_answer_is_the_one_of_mlx_vlm_generate(vlm, upstream, size):
    (model, processor), frame = upstream, picture(1, size=size)
    session = SceneSession(vlm, Config())
    session.look(frame)
    ours = session.ask(Question(TEXT, max_tokens=8), now_ns=0)
    chat, image = rendered(processor, model.config, TEXT, 1), Image.fromarray(frame.rgb)
    theirs = mlx_vlm.generate(model, processor, chat, image=[image], max_tokens=8, temperature=0.0)
    written = [token for token in theirs.token_ids if token not in vlm.stop_ids]
    assert ours.status == Status.OK and ours.exact and list(ours.token_ids) == written and written


def test_warm_answers_equal_cold_ones_with_a_history(vlm, model_dir):
    session = SceneSession(vlm, Config(history_frames=1, keyframe_interval_s=0.5))
    for seed in range(3):
        session.observe(picture(seed, size=(240, 320), stamp_s=seed))
        for question in (Question(TEXT, max_tokens=8), Question('is it red ?', choices=('yes', 'no it is blue'))):
            warm, cold = (ask(question, now_ns=int(seed * 1e9)) for ask in (session.ask, session.ask_cold))
            assert warm.status == cold.status == Status.OK and warm.tokens_reused > 0 == cold.tokens_reused
            assert (warm.token_ids, warm.choice_index) == (cold.token_ids, cold.choice_index)
    assert vlm.family.one_picture == (model_dir.name in ONE_PICTURE)
    assert session.status.frames == 2 - vlm.family.one_picture


@pytest.mark.numeric
@pytest.mark.parametrize('model_type', ['glm4v', *ONE_PICTURE])
def test_whether_several_pictures_are_seen_together_does_not_hang_on_the_kernel(model_type, tmp_path):
    loaded = load(str(write(tmp_path / model_type, model_type)))
    assert loaded.family.one_picture == (model_type in ONE_PICTURE)


@pytest.mark.parametrize('size', SIZES)
def test_every_size_of_a_camera_is_taken(vlm, size):
    grid = vlm.grid(picture(1, size=size).rgb)
    assert grid.cells > 1 and 1 / 3 < grid.rows / grid.columns / (size[0] / size[1]) < 3


@pytest.mark.parametrize('size', SIZES)
def test_the_tiles_of_the_released_llava_onevision_take_every_size(onevision, size):
    """729 tokens a tile, and as many rows of tiles as in the released models; no tower runs."""
    pixels, grid = onevision.family.prepare(picture(1, size=size).rgb)
    count = grid.ids.count(onevision.family._image_token)
    assert count > 729 and count - grid.rows < grid.cells <= count


@pytest.fixture(scope='module')
def onevision(tmp_path_factory):
    """A model with the tiles of the released ones."""
    folder = tmp_path_factory.mktemp('models') / 'onevision'
    return load(str(write_tiny_seeing(folder, 'llava_onevision', image_size=384)))


def test_qwen2_vl_has_a_family_that_patches(tmp_path):
    vlm = load(str(write_tiny_qwen2(tmp_path / 'tiny')))
    assert isinstance(vlm.family, qwen2_vl.Family)
    config = Config(refresh_policy='patch', min_confidence=1e-9, min_text_confidence=1e-9)
    session, frame = SceneSession(vlm, config), picture(1)
    session.observe(frame)
    rgb = frame.rgb.copy()
    rgb[:100, :100] ^= 0x80
    assert session.observe(type(frame)(rgb, stamp_ns=1)).level == Level.PATCH
    assert not session._refresher.is_exact


@pytest.mark.parametrize('text', ['is <image> red ?', '<image>'])
def test_a_picture_s_mark_in_plain_text_is_refused_in_a_question(tmp_path, text):
    vlm = load(str(write_tiny_seeing(tmp_path / 'tiny', 'internvl_chat')))
    assert isinstance(vlm.family, generic.Family) and vlm.family.marker
    with pytest.raises(InvalidRequestError, match="holds '<image>'"):
        vlm.template('', 1).question(text)
    assert vlm.template('', 1).question('image > what')


@pytest.mark.parametrize('model_type', REFUSED)
def test_a_type_that_cannot_be_exact_is_refused_at_load(tmp_path, monkeypatch, model_type):
    # Phi-3-V's vision tower has no configuration. As it is, a tiny model of it would be a file of 1.2 GB.
    monkeypatch.setattr(VisionModel.CLIP_VIT_LARGE_PATCH14_336_CONFIG, 'num_hidden_layers', 2)
    with pytest.raises(ModelError, match=f"'{model_type}' cannot be served exactly: .*{REFUSED[model_type][0]}"):
        load(str(write(tmp_path / 'tiny', model_type)))


def test_a_model_that_is_right_with_one_picture_only_keeps_no_history(tmp_path, monkeypatch, caplog):
    plain = generic.Family._fault
    monkeypatch.setattr(
        generic.Family,
        '_fault',
        lambda self, pictures: plain(self, pictures) if len(pictures) == 1 else 'it mixes them',
    )
    caplog.set_level('INFO')
    vlm = load(str(write_tiny_seeing(tmp_path / 'tiny', 'internvl_chat')))
    assert vlm.family.one_picture and 'sees one picture at a time: it mixes them' in caplog.text
    session = SceneSession(vlm, Config(history_frames=2, keyframe_interval_s=0.1))
    for seed in range(3):
        session.observe(picture(seed, stamp_s=seed))
        answer = session.ask(Question('is it red ?', max_tokens=3), now_ns=int(seed * 1e9))
        assert answer.status == Status.OK and answer.exact and session.status.frames == 1
    assert np.count_nonzero(['no history is kept' in line for line in caplog.messages]) == 1
    assert not any(line.endswith('..') for line in caplog.messages)
