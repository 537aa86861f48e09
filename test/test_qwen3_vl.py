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

"""The Qwen3-VL and Qwen3.5 families against mlx-vlm itself; and DeepStack."""

import mlx.core as mx
import mlx_vlm
import numpy as np
import pytest
from PIL import Image
from rounding import WIDE, choice_bound
from tiny_model import picture
from tiny_qwen3 import HIDDEN, LEVELS, chat, full_logits, prompt, run, write_tiny_qwen3

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model import noise
from vlm_reuse_node.model.families.base import Grid
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXT = 'how many objects are there , and what is the color of the square on the left ?'
SIZES = [[(480, 640)], [(640, 480), (480, 640)], [(480, 640), (320, 960), (480, 480)]]


@pytest.fixture(scope='module', params=['qwen3_vl', 'qwen3_vl_moe', 'qwen3_5', 'qwen3_5_moe'])
def model_dir(request, tmp_path_factory):
    """A tiny model of every type that these families serve, two of them with tied embeddings."""
    folder = tmp_path_factory.mktemp('models') / request.param
    return write_tiny_qwen3(folder, request.param, tied=request.param.endswith('_moe'))


@pytest.fixture(scope='module')
def vlm(model_dir):
    """The model as we load it."""
    return load(str(model_dir))


@pytest.fixture(scope='module')
def upstream(model_dir):
    """Model and processor as a user of mlx-vlm has them, loaded apart from ours."""
    return mlx_vlm.load(str(model_dir))


@pytest.fixture(scope='module')
def deepstack(tmp_path_factory):
    """A tiny model whose vision features enter at several layers."""
    return load(str(write_tiny_qwen3(tmp_path_factory.mktemp('models') / 'deepstack', 'qwen3_vl')))


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('system', ['', 'see the table .'])
def test_tokens_and_positions_are_those_of_mlx_vlm(vlm, upstream, sizes, system):
    pictures = [picture(index, size=size) for index, size in enumerate(sizes)]
    ids, positions, _ = prompt(vlm, TEXT, pictures, system)
    _, expected_ids, _, patches = chat(upstream, TEXT, pictures, system)
    expected, _ = upstream[0].language_model.get_rope_index(expected_ids, image_grid_thw=patches)
    assert ids == expected_ids[0].tolist()
    assert np.array_equal(positions, np.array(expected)[:, 0])


def test_the_positions_of_a_question_apart_go_on_where_the_pictures_end(vlm):
    pictures = [picture(1), picture(2, size=(320, 960))]
    ids, positions, _ = prompt(vlm, TEXT, pictures)
    snapshot = vlm.family.slots(ids)[-1]
    apart = vlm.family.text_positions(positions[:, :snapshot].max() + 1, len(ids) - snapshot)
    assert len(vlm.family.slots(ids)) == 2 and np.array_equal(positions[:, snapshot:], apart)


@pytest.mark.parametrize('size', [(32, 32), (1, 1), (40, 1000), (1079, 1919), (130, 90)])
def test_the_grid_of_any_picture_is_the_processors(vlm, upstream, size):
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels, grid = vlm.family.prepare(rgb)
    inputs = upstream[1].image_processor(images=[Image.fromarray(rgb)])
    assert [1, 2 * grid.rows, 2 * grid.columns] == inputs['image_grid_thw'][0].tolist()
    assert np.array_equal(np.array(pixels), inputs['pixel_values'])


def test_a_picture_too_narrow_is_refused_with_its_size(vlm):
    with pytest.raises(ImageError, match='300 x 1 pixels'):
        vlm.family.prepare(np.zeros((1, 300, 3), np.uint8))


def test_a_cell_is_the_pixels_of_one_visual_token(vlm):
    pixels, grid = vlm.family.prepare(picture(1).rgb)
    features = vlm.family.encode(pixels, grid)
    assert grid == Grid(3, 4) and vlm.family.cell_px == 32
    assert features.shape[0] == grid.cells and pixels.shape[0] == 4 * grid.cells


@pytest.mark.parametrize('sizes', SIZES)
def test_cold_logits_equal_mlx_vlm_forward_at_every_chunk_grid(vlm, upstream, sizes):
    pictures = [picture(index, size=size) for index, size in enumerate(sizes)]
    ids, positions, embeddings = prompt(vlm, TEXT, pictures)
    pixels, grids = zip(*(vlm.family.prepare(frame.rgb) for frame in pictures))

    def cold(pixels):
        features = mx.concatenate(list(map(vlm.family.encode, pixels, grids)))
        return run(vlm, ids, positions, vlm.family.embed(ids, features), vlm.new_cache(), 512)

    _, *inputs = chat(upstream, TEXT, pictures)
    expected, bound = full_logits(upstream, *inputs), noise.bound(list(pixels), cold)
    for limit in (512, 17, 1):  # one call; cuts inside of pictures; token by token
        logits = run(vlm, ids, positions, embeddings, vlm.new_cache(), limit)
        assert noise.apart(logits, expected) < bound
    assert WIDE * bound < expected.std()


@pytest.mark.parametrize('seed, text', [(1, TEXT), (2, 'what is it ?')])
def test_the_cold_answer_equals_mlx_vlm_generate(vlm, upstream, seed, text):
    frame = picture(seed)
    session = SceneSession(vlm, Config())
    session.observe(frame)
    ours = session.ask_cold(Question(text, max_tokens=16), now_ns=0)
    theirs = mlx_vlm.generate(
        *upstream, chat(upstream, text, [frame])[0], image=[Image.fromarray(frame.rgb)], max_tokens=16, temperature=0.0
    )
    stops = upstream[1].tokenizer.stopping_criteria.eos_token_ids
    assert list(ours.token_ids) == [token for token in theirs.token_ids if token not in stops]


def test_choice_scores_equal_a_full_forward_per_choice(vlm, upstream):
    choices, frame = ('red', 'green circle', 'yes', 'yes it is'), picture(4)
    session = SceneSession(vlm, Config())
    session.observe(frame)
    answer = session.ask(Question(TEXT, choices), now_ns=0)
    _, ids, pixels, patches = chat(upstream, TEXT, [frame])
    stops, totals = list(vlm.stop_ids), []
    for choice in choices:
        tokens = upstream[1].tokenizer(choice)['input_ids']
        logits = full_logits(upstream, mx.concatenate([ids, mx.array([tokens])], axis=1), pixels, patches)
        table = logits[-len(tokens) - 1 :].astype(np.float64)
        table -= np.log(np.exp(table).sum(axis=-1, keepdims=True))
        totals.append(sum(table[range(len(tokens)), tokens]) + np.log(np.exp(table[-1, stops]).sum()))
    expected = totals - np.log(np.exp(totals).sum())
    assert noise.apart(np.log(answer.choice_scores), expected) < choice_bound(session, Question(TEXT, choices))


def test_positions_kept_in_the_model_are_neither_read_nor_written(vlm):
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    language = vlm._model.language_model
    clean = session.ask(Question(TEXT, max_tokens=8), now_ns=0)
    language._rope_deltas, language._position_ids = mx.array([[977]]), mx.zeros((3, 1, 4))
    try:
        session.observe(picture(2))
        session.observe(picture(1, stamp_s=1))
        session.reset()
        session.observe(picture(1, stamp_s=2))
        assert session.ask(Question(TEXT, max_tokens=8), now_ns=0).token_ids == clean.token_ids
        assert language._rope_deltas.item() == 977 and language._position_ids.shape == (3, 1, 4)
    finally:
        language._rope_deltas = language._position_ids = None


def test_the_levels_are_carried_beside_the_features_and_are_zero_in_text(deepstack):
    pictures = [picture(1), picture(2, size=(320, 960))]
    ids, _, embeddings = prompt(deepstack, TEXT, pictures)
    visual = np.array(ids) == deepstack.family._image_token
    levels = np.array(embeddings)[0, :, HIDDEN:]
    assert levels.shape[1] == LEVELS * HIDDEN and visual.sum() == 24
    assert not levels[~visual].any() and (levels[visual] != 0).all()
    assert deepstack.family.embed(ids).shape == (1, len(ids), HIDDEN)


def in_one_call(vlm, ids, positions, embeddings):
    """Logits of all tokens, and how far rounding may move them."""

    def logits(embeddings):
        return run(vlm, ids, positions, embeddings, vlm.new_cache(), 512)

    return logits(embeddings), noise.bound(embeddings, logits)


def test_every_level_reaches_the_logits(deepstack):
    ids, positions, embeddings = prompt(deepstack, TEXT, [picture(1)])
    expected, bound = in_one_call(deepstack, ids, positions, embeddings)
    for level in range(LEVELS):
        without = mx.array(embeddings)
        without[..., (1 + level) * HIDDEN : (2 + level) * HIDDEN] = 0
        logits = run(deepstack, ids, positions, without, deepstack.new_cache(), 512)
        assert noise.apart(logits, expected) > WIDE * bound


def test_a_prompt_cut_inside_a_picture_gives_each_part_its_own_levels(deepstack):
    ids, positions, embeddings = prompt(deepstack, TEXT, [picture(1), picture(2)])
    expected, bound = in_one_call(deepstack, ids, positions, embeddings)
    for first in range(1, len(ids)):
        cache = deepstack.new_cache()
        parts = [
            run(deepstack, ids[part], positions[:, part], embeddings[:, part], cache, 512)
            for part in (slice(0, first), slice(first, len(ids)))
        ]
        assert noise.apart(np.concatenate(parts), expected) < bound
