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

"""Gemma 4 without a vision tower, against `mlx_vlm.generate`; and that the generic family refuses what it would get."""

import mlx.core as mx
import mlx_vlm
import numpy as np
import pytest
from mlx_vlm.prompt_utils import apply_chat_template
from PIL import Image
from rounding import WIDE
from tiny_gemma4 import write_tiny_gemma4
from tiny_model import picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError, ModelError
from vlm_reuse_node.model import noise
from vlm_reuse_node.model.chat import processed, rendered
from vlm_reuse_node.model.families import generic, probe
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXT = 'how many objects are there , and what is the color of the square on the left ?'
PATCH = Config(refresh_policy='patch', min_confidence=1e-9, min_text_confidence=1e-9)
SIZES = [[(480, 640)], [(480, 640), (640, 480)], [(240, 960), (400, 400)]]


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
    """A tiny model; its sliding window is shorter than a picture."""
    return write_tiny_gemma4(tmp_path_factory.mktemp('models') / 'gemma4_unified', unified=True, window=40)


@pytest.fixture(scope='module')
def vlm(model_dir):
    """The model as we load it."""
    return load(str(model_dir))


@pytest.fixture(scope='module')
def upstream(model_dir):
    """Model and processor as a user of mlx-vlm has them, loaded apart from ours."""
    return mlx_vlm.load(str(model_dir))


def changed(frame, stamp_s=1.0, size=40):
    """The frame with another square in its middle."""
    rgb = frame.rgb.copy()
    rgb[200 : 200 + size, 300 : 300 + size] ^= 0x80
    return Frame(rgb, stamp_ns=int(stamp_s * 1e9))


@pytest.mark.parametrize('sizes', SIZES)
def test_answers_are_those_of_mlx_vlm_generate(vlm, upstream, sizes):
    """Its pictures are seen both ways; several, of several sizes."""
    model, processor = upstream
    frames = [picture(seed, size=size) for seed, size in enumerate(sizes, start=1)]
    inputs = processed(
        processor, model.config, rendered(processor, model.config, TEXT, len(frames)), [f.rgb for f in frames]
    )
    tokens, theirs = probe.generated(model, inputs)
    template, prepared = vlm.template('', len(frames)), [vlm.family.prepare(frame.rgb) for frame in frames]
    ids = vlm.family.expand(template.prefix, [grid for _, grid in prepared]) + template.question(TEXT)
    assert ids == np.array(inputs['input_ids'])[0].tolist()

    def ours(pixels):
        features = mx.concatenate([vlm.family.encode(each, grid) for each, (_, grid) in zip(pixels, prepared)])
        cache, found = vlm.new_cache(), []
        embeddings = vlm.family.embed(ids, features)
        logits = vlm.run(cache, ids, vlm.family.positions(ids, [grid for _, grid in prepared]), embeddings=embeddings)
        for place, token in enumerate([*tokens[:-1], None], len(ids)):
            found.append(logits[-1] - mx.logsumexp(logits[-1]))
            if token is not None:
                logits = vlm.family.step(mx.array([token]), place, cache)
        return mx.stack(found)

    pixels = [list(each) for each, _ in prepared]
    assert noise.apart(ours(pixels), theirs) < noise.bound(pixels, ours)


@pytest.mark.parametrize('seed', [1, 2, 3, 4])
def test_a_session_s_answer_is_the_one_of_mlx_vlm_generate(vlm, upstream, seed):
    model, processor = upstream
    frame, session = picture(seed), SceneSession(vlm, Config())
    session.look(frame)
    ours = session.ask(Question(TEXT, max_tokens=12), now_ns=0)
    text = apply_chat_template(processor, model.config, [{'role': 'user', 'content': TEXT}], num_images=1)
    theirs = mlx_vlm.generate(
        model, processor, text, image=[Image.fromarray(frame.rgb)], max_tokens=12, temperature=0.0
    )
    written = [token for token in theirs.token_ids if token not in vlm.stop_ids]
    if model.config.image_token_id in written:  # of random weights; what a model writes is no picture
        written = written[: written.index(model.config.image_token_id)]
    assert ours.exact and len(written) > 2 and list(ours.token_ids[: len(written)]) == written


def test_warm_answers_equal_cold_ones(vlm):
    session = SceneSession(vlm, Config(history_frames=1, keyframe_interval_s=0.5))
    for seed in range(3):
        session.observe(picture(seed, stamp_s=seed))
        for question in (Question(TEXT, max_tokens=8), Question('is it red ?', choices=('yes', 'no it is blue'))):
            now_ns = int(seed * 1e9)
            warm, cold = session.ask(question, now_ns=now_ns), session.ask_cold(question, now_ns=now_ns)
            assert warm.status == cold.status == Status.OK and warm.token_ids == cold.token_ids
            assert warm.choice_index == cold.choice_index and warm.tokens_reused > 0 == cold.tokens_reused


def test_a_changed_cell_changes_its_own_feature_only_so_sparse_vision_is_exact(vlm):
    family, frame = vlm.family, picture(1)
    pixels, grid = family.prepare(frame.rgb)
    newer, _ = family.prepare(changed(frame).rgb)
    old, dense = family.encode_cells(pixels, grid, np.arange(grid.cells), None), family.encode(newer, grid)
    cells = np.flatnonzero(np.abs(np.array(newer[0] - pixels[0]))[0, : grid.cells].max(axis=1))
    assert 0 < len(cells) < grid.cells / 10
    new = family.encode_cells(newer, grid, cells, old)
    bound = noise.bound(list(newer), lambda given: family.encode(tuple(given), grid))
    assert noise.apart(new.features, dense) < bound < noise.apart(old.features, dense) / WIDE


def test_few_changed_cells_are_patched(tmp_path):
    vlm = load(str(write_tiny_gemma4(tmp_path / 'wide', unified=True, window=400)))
    session, frame = SceneSession(vlm, PATCH), picture(1)
    session.observe(frame)
    assert session.observe(changed(frame)).level == Level.PATCH
    assert not session._refresher.is_exact


@pytest.mark.parametrize('size', [(30, 4000), (4000, 30), (1, 1), (17, 33)])
def test_a_picture_of_any_shape_is_seen_or_refused(vlm, size):
    try:
        features, grid = vlm.see(np.zeros((*size, 3), np.uint8))
    except ImageError as error:
        assert error.cause == 'size'
    else:
        assert grid.cells == len(features)


def test_processor_and_model_that_disagree_on_cells_are_refused(vlm, monkeypatch):
    monkeypatch.setattr(vlm.family, 'cell_px', 24)
    with pytest.raises(ModelError, match='cells of 24 pixels a side.*model_patch_size'):
        vlm.family.prepare(picture(1).rgb)


def test_the_generic_family_would_answer_wrong_and_refuses_it(upstream):
    """Its own forward drops the token types that `mlx_vlm.generate` gives it."""
    with pytest.raises(ModelError, match='off those of mlx_vlm.generate.*both directions'):
        generic.Family(*upstream)
