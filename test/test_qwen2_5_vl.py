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

"""The Qwen2.5-VL family against mlx-vlm itself: tokens, positions, generated answers, choice scores."""

from functools import partial

import mlx.core as mx
import mlx_vlm
import numpy as np
import pytest
from mlx_vlm.prompt_utils import apply_chat_template
from PIL import Image
from rounding import choice_bound
from tiny_model import picture, write_tiny_model

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.families.base import FAMILIES, Grid, family_for
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.model.noise import apart
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXT = 'how many objects are there , and what is the color of the square on the left ?'


@pytest.fixture(scope='module', params=['words', 'bytes'])
def model_dir(request, tmp_path_factory):
    """The tiny model with a word tokenizer, and with a byte-level one and tied embeddings."""
    bytewise = request.param == 'bytes'
    return write_tiny_model(tmp_path_factory.mktemp('models') / request.param, tokenizer=request.param, tied=bytewise)


@pytest.fixture(scope='module')
def vlm(model_dir):
    """The model as we load it."""
    return load(str(model_dir))


@pytest.fixture(scope='module')
def upstream(model_dir):
    """Model and processor as a user of mlx-vlm has them, loaded apart from ours."""
    return mlx_vlm.load(str(model_dir))


def inputs(upstream, text, pictures, system=''):
    """What mlx-vlm computes for a chat: prompt, token ids mx (1, length), pixel values, patch grids."""
    model, processor = upstream
    chat = [{'role': 'system', 'content': system}] * bool(system) + [{'role': 'user', 'content': text}]
    prompt = apply_chat_template(processor, model.config, chat, num_images=len(pictures))
    batch = processor(text=[prompt], images=[Image.fromarray(frame.rgb) for frame in pictures])
    return prompt, batch['input_ids'], batch['pixel_values'], batch['image_grid_thw']


@pytest.mark.parametrize('sizes', [[(480, 640)], [(640, 480)], [(480, 640), (320, 960), (480, 480)]])
@pytest.mark.parametrize('system', ['', 'see the table .'])
def test_tokens_and_positions_equal_those_of_the_full_prompt(vlm, upstream, sizes, system):
    pictures = [picture(index, size=size) for index, size in enumerate(sizes)]
    _, ids, _, patches = inputs(upstream, TEXT, pictures, system)
    template = vlm.template(system, len(pictures))
    state = states.build(vlm, partial(vlm.template, system), [EncodedFrame.see(vlm, frame) for frame in pictures])
    prefix = vlm.family.expand(template.prefix, state.identity.grids)
    question = template.question(TEXT)
    assert prefix + question == ids[0].tolist() and state.tokens == len(prefix)

    expected, _ = upstream[0].language_model.get_rope_index(ids, image_grid_thw=patches)
    positions = np.concatenate(
        [
            vlm.family.positions(prefix, state.identity.grids),
            vlm.family.text_positions(state.next_position, len(question)),
        ],
        axis=1,
    )
    assert np.array_equal(positions, np.array(expected)[:, 0])


@pytest.mark.parametrize(
    'text', ['Is it red?', ' \n what\tIS ', 'où est l’étoile ★ 色?', 'a' * 300, '. . .', '\u0065\u0301']
)
def test_a_question_apart_has_the_tokens_it_has_in_the_chat(vlm, upstream, text):
    template, frame = vlm.template('', 1), picture(1)
    _, ids, _, _ = inputs(upstream, text, [frame])
    prefix = vlm.family.expand(template.prefix, [Grid(3, 4)])
    assert prefix + template.question(text) == ids[0].tolist()


def test_a_choice_apart_has_the_tokens_it_has_behind_the_chat(vlm, upstream):
    prompt, _, _, _ = inputs(upstream, TEXT, [picture(1)])
    for choice in ('red', 'Yes it is', 'no .', '2', 'two three'):
        tokenizer = upstream[1].tokenizer
        assert (
            tokenizer(prompt)['input_ids'] + vlm.template('', 1).choices([choice])[0]
            == tokenizer(prompt + choice)['input_ids']
        )


@pytest.mark.parametrize('seed, text', [(1, TEXT), (2, 'what is it ?'), (3, 'red , blue or green ?')])
def test_the_cold_answer_equals_mlx_vlm_generate(vlm, upstream, seed, text):
    frame = picture(seed)
    session = SceneSession(vlm, Config())
    session.observe(frame)
    ours = session.ask_cold(Question(text, max_tokens=24), now_ns=0)
    prompt = inputs(upstream, text, [frame])[0]
    theirs = mlx_vlm.generate(*upstream, prompt, image=[Image.fromarray(frame.rgb)], max_tokens=24, temperature=0.0)
    stops = upstream[1].tokenizer.stopping_criteria.eos_token_ids
    assert list(ours.token_ids) == [token for token in theirs.token_ids if token not in stops]


def test_positions_kept_in_the_model_are_neither_read_nor_written(vlm):
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    language = vlm._model.language_model
    clean = session.ask(Question(TEXT, max_tokens=8), now_ns=0)
    language._rope_deltas, language._position_ids = mx.array([[977]]), mx.zeros((3, 1, 4))
    try:
        session.observe(picture(1, stamp_s=1))
        assert session.ask(Question(TEXT, max_tokens=8), now_ns=0).token_ids == clean.token_ids
        assert language._rope_deltas.item() == 977 and language._position_ids.shape == (3, 1, 4)
    finally:
        language._rope_deltas = language._position_ids = None


def test_choice_scores_equal_a_full_forward_per_choice(vlm, upstream):
    choices, frame = ('red', 'green circle', 'yes', 'yes it is'), picture(4)
    session = SceneSession(vlm, Config())
    session.observe(frame)
    answer = session.ask(Question(TEXT, choices), now_ns=0)

    model, processor = upstream
    _, ids, pixels, patches = inputs(upstream, TEXT, [frame])
    totals = []
    for choice in choices:
        tokens = processor.tokenizer(choice)['input_ids']
        full = mx.concatenate([ids, mx.array([tokens])], axis=1)
        logits = model(full, pixels, image_grid_thw=patches).logits[0, -len(tokens) - 1 :]
        table = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True), np.float64)
        stops = processor.tokenizer.stopping_criteria.eos_token_ids
        totals.append(sum(table[range(len(tokens)), tokens]) + np.log(np.exp(table[-1, stops]).sum()))
    expected = totals - np.log(np.exp(totals).sum())
    assert apart(np.log(answer.choice_scores), expected) < choice_bound(session, Question(TEXT, choices))


def test_a_cell_is_the_pixels_of_one_visual_token(vlm):
    pixels, grid = vlm.family.prepare(picture(1).rgb)
    features = vlm.family.encode(pixels, grid)
    assert grid == Grid(3, 4) and vlm.family.cell_px == 28
    assert features.shape == (grid.cells, 48) and pixels.shape[0] == 4 * grid.cells


def test_every_family_in_the_table_exists():
    assert all(family_for(model_type).__module__ == module for model_type, module in FAMILIES.items())
