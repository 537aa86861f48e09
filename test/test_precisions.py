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

"""Quantised and half-precision models: warm answers equal cold ones, within the noise of that precision.

On a CPU the loader makes float32 of half precision. Here models are also set back to bfloat16, which MLX's CPU backend
computes for dense models; it has no half-precision kernel for mixtures of experts (GatherMM), so none is here.
"""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from credit import give_credit
from mlx.utils import tree_flatten
from quantised import quantise
from rounding import choice_bound, choices_apart
from tiny_gemma4 import write_tiny_gemma4
from tiny_generic import write_tiny_generic
from tiny_model import _write_weights, picture, write_tiny_model
from tiny_qwen3 import write_tiny_qwen3

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Turn


def write_wide(folder):
    """A tiny Qwen2.5-VL whose embeddings can be quantised, too: their width is a multiple of 32."""
    config = json.loads((write_tiny_model(folder) / 'config.json').read_text())
    config |= {'hidden_size': 64, 'rope_scaling': {'type': 'mrope', 'mrope_section': [2, 3, 3]}}
    config['vision_config'] |= {'out_hidden_size': 64}
    (folder / 'config.json').write_text(json.dumps(config))
    _write_weights(folder, config, seed=0)
    return folder


WRITERS = {
    'qwen2_5_vl': write_wide,
    'qwen3_vl': lambda folder: write_tiny_qwen3(folder, 'qwen3_vl'),
    'qwen3_5': lambda folder: write_tiny_qwen3(folder, 'qwen3_5'),
    'gemma4': write_tiny_gemma4,
    'llava': lambda folder: write_tiny_generic(folder, 'llava'),
}
KINDS = {
    '4-bit': {'bits': 4, 'group_size': 32, 'mode': 'affine'},
    '8-bit': {'bits': 8, 'group_size': 32, 'mode': 'affine'},
    'mxfp4': {'bits': 4, 'group_size': 32, 'mode': 'mxfp4'},
    'bfloat16': None,
}
CHOICE = Question('is the square red ?', choices=('yes', 'no', 'blue circle'))
TEXTS = [Question(text, max_tokens=8) for text in ('what is it ?', 'how many objects are there ?')]


def write(folder, model_type, kind):
    """A tiny model directory."""
    WRITERS[model_type](folder)
    return quantise(folder, KINDS[kind]) if KINDS[kind] else folder


@pytest.fixture(scope='module', params=[(model_type, kind) for model_type in WRITERS for kind in KINDS])
def vlm(request, tmp_path_factory):
    """A tiny model of each type in each precision."""
    model_type, kind = request.param
    folder = tmp_path_factory.mktemp('models') / f'{model_type} {kind}'
    vlm = load(str(write(folder, model_type, kind)))
    if kind == 'bfloat16':
        vlm._model.set_dtype(mx.bfloat16)
    else:
        assert any(name.endswith('scales') for name, _ in tree_flatten(vlm._model.parameters()))
    return vlm


def test_warm_answers_equal_cold_ones(vlm):
    session = SceneSession(vlm, Config(refresh_policy='patch', history_frames=1, keyframe_interval_s=0.5))
    for seed in (1, 2):
        now_ns = int(seed * 1e9)
        session.look(picture(seed, stamp_s=seed))
        for question in TEXTS:
            warm, cold = (ask(question, now_ns=now_ns) for ask in (session.ask, session.ask_cold))
            assert warm.status == cold.status == Status.OK and warm.exact and warm.token_ids == cold.token_ids
        warm, cold = (ask(CHOICE, now_ns=now_ns) for ask in (session.ask, session.ask_cold))
        assert choices_apart(warm, cold) < choice_bound(session, CHOICE)


def test_after_refreshes_patches_a_cancel_and_a_rollover_exact_answers_are_cold_ones(vlm):
    config = Config(
        refresh_policy='patch', min_confidence=0.0, max_patch_share=1.0, history_frames=2, keyframe_interval_s=1.5
    )
    session = SceneSession(vlm, config)
    give_credit(session)
    levels, compared = set(), 0
    for second in range(1, 9):
        now_ns = second * 10**9
        shown = picture(1 + second // 3, stamp_s=second)
        rgb, corner = shown.rgb.copy(), slice(100 * (second % 3), 100 * (second % 3) + 100)
        rgb[corner, corner] = 255 - rgb[corner, corner]
        session.look(replace(shown, rgb=rgb))
        if second == 4:
            steps = iter((False, True))
            cancelled = session.ask(TEXTS[0], now_ns=now_ns, turn=Turn(cancelled=lambda: next(steps, True)))
            assert cancelled.status == Status.CANCELLED
        for question in (CHOICE, TEXTS[second % 4 // 2]) if second % 2 else (CHOICE,):
            warm, cold = (ask(question, now_ns=now_ns) for ask in (session.ask, session.ask_cold))
            levels.add(warm.level)
            if warm.exact and warm.cached_stamp_ns == cold.cached_stamp_ns:
                compared += 1
                assert warm.token_ids == cold.token_ids
                apart = choices_apart(warm, cold) if question.choices else 0.0
                assert apart == 0 or apart < choice_bound(session, question)  # the bound takes longer than all else
        while session.work() == 0:
            pass
    assert len(session._refresher.state.frames) <= 3  # of five keyframes, so the history was rolled over
    assert Level.FULL in levels and Level.FRAME in levels and compared >= 6
    assert (Level.PATCH in levels) == vlm.family.encodes_cells


def test_a_restored_snapshot_is_the_same_bit_for_bit(vlm):
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    state = session._refresher.state

    def digest():
        arrays = [array for _, array in tree_flatten([entry.state for entry in state.cache])]
        return [np.array(array.astype(mx.float32)).tobytes() for array in arrays]

    before = digest()
    for question in (*TEXTS, CHOICE):
        session.ask(question, now_ns=0)
        assert digest() == before


@pytest.mark.parametrize('kind', KINDS)
def test_on_a_cpu_a_model_computes_in_the_precision_that_is_told(tmp_path, kind):
    """mxfp4's embeddings give bfloat16 unless they are told otherwise."""
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip('elsewhere the weights keep their type')
    vlm = load(str(write(tmp_path / 'tiny', 'qwen2_5_vl', kind)))
    assert vlm.precision == 'float32' and vlm.family.embed([1, 2]).dtype == mx.float32
    pixels, grid = vlm.family.prepare(picture(1).rgb)
    cache = vlm.new_cache()
    vlm.run(cache, [1, 2, 3], vlm.family.text_positions(0, 3))
    assert {entry.keys.dtype for entry in cache} == {mx.float32}
