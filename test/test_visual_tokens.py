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

"""The size of a picture in visual tokens: set on the processor, so that everything sees the same."""

import json

import mlx_vlm
import numpy as np
import pytest
from mlx_vlm.models.gemma4.processing_gemma4 import _SUPPORTED_SOFT_TOKENS
from PIL import Image
from tiny_gemma4 import write_tiny_gemma4
from tiny_generic import write_tiny_generic
from tiny_model import picture, write_tiny_model, write_tiny_qwen2
from tiny_qwen3 import write_tiny_qwen3
from tiny_seeing import write_tiny_seeing

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model import loading, visual_tokens
from vlm_reuse_node.model.chat import rendered
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXT = 'how many objects are there ?'
SIZES = [(480, 640), (1080, 1920), (640, 480), (120, 160)]
# A size below the model's own: the largest of its tiny pictures has 16 to 1120 tokens.
WRITERS = {
    'qwen2_vl': (write_tiny_qwen2, 6),
    'qwen2_5_vl': (write_tiny_model, 6),
    'qwen3_vl': (lambda folder: write_tiny_qwen3(folder, 'qwen3_vl'), 6),
    'qwen3_5': (lambda folder: write_tiny_qwen3(folder, 'qwen3_5'), 6),
    'gemma4': (lambda folder: with_soft_tokens(write_tiny_gemma4(folder, window=128), 140), 100),
    'gemma4_unified': (lambda folder: write_tiny_gemma4(folder, unified=True), 100),
    'idefics3': (lambda folder: write_tiny_generic(folder, 'idefics3'), 10),
    'pixtral': (lambda folder: write_tiny_generic(folder, 'pixtral'), 9),
    'lfm2_vl': (lambda folder: write_tiny_generic(folder, 'lfm2_vl'), 12),
    'internvl_chat': (lambda folder: write_tiny_seeing(folder, 'internvl_chat'), 8),
}


def with_soft_tokens(folder, tokens):
    """The tiny Gemma 4 with larger pictures, so that there is a smaller size."""
    file = folder / 'processor_config.json'
    content = json.loads(file.read_text())
    content['image_processor']['max_soft_tokens'] = tokens
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope='module', params=WRITERS)
def sized(request, tmp_path_factory):
    """A model's directory, a size, and the model as it is and at that size."""
    write, most = WRITERS[request.param]
    folder = str(write(tmp_path_factory.mktemp('models') / 'tiny'))
    return folder, most, loading.load(folder), loading.load(folder, most)


@pytest.mark.parametrize('size', SIZES)
def test_a_smaller_size_gives_at_most_so_many_cells_and_fewer_of_a_large_picture(sized, size):
    _, most, whole, small = sized
    rgb = picture(1, size=size).rgb
    assert 0 < small.grid(rgb).cells <= min(most, whole.grid(rgb).cells)
    assert size[0] < 480 or small.grid(rgb).cells < whole.grid(rgb).cells


def test_warm_answers_equal_cold_ones_and_those_of_mlx_vlm_with_the_same_processor(sized):
    _, most, _, vlm = sized
    session = SceneSession(vlm, Config(history_frames=1, keyframe_interval_s=0.5))
    for seed in range(2):
        frame = picture(seed, stamp_s=seed)
        session.observe(frame)
        for question in (Question(TEXT, max_tokens=6), Question('is it red ?', choices=('yes', 'no it is blue'))):
            warm, cold = (ask(question, now_ns=frame.stamp_ns) for ask in (session.ask, session.ask_cold))
            assert warm.status == cold.status == Status.OK and warm.tokens_reused > 0
            assert (warm.token_ids, warm.choice_index) == (cold.token_ids, cold.choice_index)
    session, frame = SceneSession(vlm, Config()), picture(3, size=(1080, 1920))
    session.observe(frame)
    ours = session.ask(Question(TEXT, max_tokens=6), now_ns=0)
    model, processor = vlm._model, vlm._processor
    chat = rendered(processor, model.config, TEXT, 1)
    theirs = mlx_vlm.generate(model, processor, chat, image=[Image.fromarray(frame.rgb)], max_tokens=6, temperature=0.0)
    assert list(ours.token_ids) == [token for token in theirs.token_ids if token not in vlm.stop_ids]


def test_a_loaded_model_at_another_size_is_the_one_that_is_loaded_so_and_leaves_the_first_alone(sized):
    _, most, whole, small = sized
    rgb = picture(1, size=(1080, 1920)).rgb
    before = whole.grid(rgb)
    other = whole.with_visual_tokens(most)
    assert other.grid(rgb) == small.grid(rgb) and whole.grid(rgb) == before
    assert other._model is whole._model
    assert np.array_equal(np.array(other.see(rgb)[0]), np.array(small.see(rgb)[0]))


@pytest.mark.parametrize('model_type', ['llava', 'llava_onevision', 'gemma3'])
def test_a_processor_without_a_setting_is_refused_with_what_it_makes_of_a_picture(tmp_path, model_type):
    write = write_tiny_generic if model_type == 'llava' else write_tiny_seeing
    folder = str(write(tmp_path / 'tiny', model_type))
    with pytest.raises(ModelError, match=r'visual_tokens is 8, .* no setting .* has (\d+) tokens; expected 0\.$'):
        loading.load(folder, 8)


@pytest.mark.parametrize('name, allowed', [('gemma4_unified', '70, 140, 280'), ('internvl_chat', 'at least 4')])
def test_a_size_below_the_smallest_is_refused_with_those_that_there_are(tmp_path, name, allowed):
    folder = str(WRITERS[name][0](tmp_path / 'tiny'))
    with pytest.raises(ModelError, match=f'visual_tokens is 2, which is too small .* {allowed}'):
        loading.load(folder, 2)


def test_gemma_4_gets_the_largest_of_its_sizes_that_is_not_above(tmp_path):
    model, processor = mlx_vlm.load(str(WRITERS['gemma4_unified'][0](tmp_path / 'tiny')))
    assert visual_tokens.SOFT_TOKENS == _SUPPORTED_SOFT_TOKENS
    for most in (70, 139, 140, 600, 5000):
        given = visual_tokens.limited(processor, model.config, most).image_processor.max_soft_tokens
        assert given <= most and not any(given < other <= most for other in visual_tokens.SOFT_TOKENS)


@pytest.mark.parametrize('most', [4, 5, 16, 108, 256, 1400])
@pytest.mark.parametrize('size', [(480, 640), (1080, 1920), (1080, 1080), (1920, 1080), (120, 160), (400, 848)])
def test_qwen_pictures_of_cameras_stay_below_and_near_the_size(vlm, most, size):
    """Near it: a large picture loses less than a row and a column to whole cells."""
    cells = vlm.with_visual_tokens(most).grid(picture(1, size=size).rgb).cells
    assert cells <= most
    if size[0] >= 1080 and most >= 16:
        assert cells >= most - 3 * most**0.5


def test_the_embedded_model_takes_another_size_and_keeps_its_own_at_108():
    own, same, small = (loading.load('tabletop', most) for most in (0, 108, 54))
    rgb = picture(1).rgb
    assert own.grid(rgb) == same.grid(rgb) and own.grid(rgb).cells == 108
    assert 27 < small.grid(rgb).cells <= 54
