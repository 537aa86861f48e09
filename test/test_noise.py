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

"""The noise of the arithmetic in use: what is the same is within its bound, and every real fault is far beyond it."""

from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.cache import KVCache
from rounding import WIDE, choice_bound, log_scores
from tiny_gemma4 import write_tiny_gemma4
from tiny_generic import write_tiny_generic
from tiny_model import picture, write_tiny_model
from tiny_qwen3 import write_tiny_qwen3

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import noise, pass_cache
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.model.token_tree import Block, TokenTree
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXT = 'what color is the square on the left ?'
TYPES = [mx.float32, mx.float16, mx.bfloat16]
MODELS = {
    'qwen2_5_vl': write_tiny_model,
    'qwen3_vl': lambda folder: write_tiny_qwen3(folder, 'qwen3_vl'),
    'qwen3_5_moe': lambda folder: write_tiny_qwen3(folder, 'qwen3_5_moe'),
    'gemma4': lambda folder: write_tiny_gemma4(folder, 'layer_inputs', window=7),
    'idefics3': lambda folder: write_tiny_generic(folder, 'idefics3'),
}


@pytest.mark.parametrize('kind', TYPES)
def test_every_number_moves_by_about_one_unit_up_or_down(kind):
    array = mx.random.normal((1000,), key=mx.random.key(0)).astype(kind)
    change = (noise.moved(array, 0) - array).astype(mx.float32) / (array.astype(mx.float32) * mx.finfo(kind).eps)
    sizes = np.abs(np.array(change))
    assert 0.5 <= sizes.min() and sizes.max() <= 2 and 0.4 < np.mean(np.array(change) > 0) < 0.6
    assert mx.array_equal(noise.moved(array, 0), noise.moved(array, 0))
    assert not mx.array_equal(noise.moved(array, 0), noise.moved(array, 1))


def test_what_is_no_floating_point_number_stays():
    given = {'ids': mx.array([1, 2]), 'sizes': [(3, 4), None], 'pixels': mx.array([0.0, 1.0])}
    moved = noise.moved(given, 0)
    assert mx.array_equal(moved['ids'], given['ids']) and moved['sizes'] == given['sizes']
    assert moved['pixels'][0] == 0 and moved['pixels'][1] != 1


@pytest.mark.parametrize('kind', TYPES)
def test_the_floor_is_not_0_even_where_every_run_has_the_same_bits(kind):
    """One unit of the type that was computed in, of the largest number: the result itself may have a finer type."""
    result = mx.array([1.0, -3.0, 0.5])
    floor = noise.floor(mx.ones((4,), kind), lambda given: result)
    assert floor == pytest.approx(3 * mx.finfo(kind).eps)
    assert noise.bound(mx.ones((4,), kind), lambda given: result) == noise.FACTOR * floor


def test_the_floor_is_the_furthest_run_of_all():
    given = mx.array([2.0])
    of_moves = noise.floor(given, lambda given: 1000 * (given - 2))
    assert of_moves == pytest.approx(1000 * 2 * mx.finfo(mx.float32).eps)
    assert noise.floor(given, lambda given: given, lambda given: given + 0.5, lambda given: given) == 0.5


def test_what_is_no_number_is_within_no_bound():
    none = mx.array([1.0, float('nan')])
    assert not noise.apart(none, mx.zeros(2)) < noise.bound(mx.ones(2), lambda given: given)
    assert not noise.apart(mx.ones(2), mx.ones(2)) < noise.bound(mx.ones(2), lambda given: none)


def test_results_of_other_shapes_are_not_compared():
    with pytest.raises(ValueError, match=r'shapes \(2,\) and \(1,\)'):
        noise.apart(mx.ones(2), mx.ones(1))


@dataclass(frozen=True)
class Prompt:
    """Two pictures and a question, all that forward calls are given. features: of each picture, mx (cells, width)."""

    vlm: Vlm
    ids: list[int]
    positions: np.ndarray
    features: tuple[mx.array, ...]

    @property
    def embeddings(self):
        return self.vlm.family.embed(self.ids, mx.concatenate(self.features))

    @property
    def question(self):
        """Where the question begins."""
        return self.vlm.family.slots(self.ids)[-1]

    def run(self, embeddings, limit=512):
        """Logits of all tokens, and keys and values of the flat layers, after calls of at most so many tokens."""
        family, cache, logits = self.vlm.family, self.vlm.new_cache(), []
        for part in family.chunks(self.ids, limit):
            ids = self.ids[part]
            logits.append(family.forward(ids, embeddings[:, part], self.positions[:, part], cache, range(len(ids))))
            mx.eval(logits)
        flat = [layer for layer in cache if type(layer) is KVCache]
        return mx.concatenate(logits), [rows[:, :, : layer.offset] for layer in flat for rows in layer.state]


@pytest.fixture(scope='module', params=MODELS)
def prompt(request, tmp_path_factory):
    """Of a tiny model of each kind."""
    vlm = load(str(MODELS[request.param](tmp_path_factory.mktemp('models') / 'tiny')))
    features, grids = zip(*(vlm.see(picture(seed).rgb) for seed in (1, 2)))
    template = vlm.template('', 2)
    ids = vlm.family.expand(template.prefix + template.question(TEXT), grids)
    return Prompt(vlm, ids, vlm.family.positions(ids, grids), features)


@pytest.fixture(scope='module')
def expected(prompt):
    """Logits, keys and values in one call."""
    return prompt.run(prompt.embeddings)


@pytest.fixture(scope='module')
def bounds(prompt):
    """How far rounding may move the logits, and the keys and values."""
    return [noise.bound(prompt.embeddings, lambda given: prompt.run(given)[which]) for which in range(2)]


@pytest.mark.numeric
@pytest.mark.parametrize('limit', [1, 7])
def test_the_same_prompt_in_other_calls_is_within_the_bound(prompt, expected, bounds, limit):
    for found, right, bound in zip(prompt.run(prompt.embeddings, limit), expected, bounds):
        assert noise.apart(found, right) < bound


@pytest.mark.numeric
def test_one_stale_cell_is_far_beyond_it(prompt, expected, bounds):
    """The least that can be stale: one cell of the newest picture is what the one before it showed there."""
    older, newer = prompt.features
    cell = len(newer) // 2
    stale = mx.concatenate([newer[:cell], older[cell : cell + 1], newer[cell + 1 :]])
    logits, rows = prompt.run(replace(prompt, features=(older, stale)).embeddings)
    assert noise.apart(logits[-1], expected[0][-1]) > WIDE * bounds[0]
    assert noise.apart(rows, expected[1]) > WIDE * bounds[1]


@pytest.mark.numeric
def test_a_question_one_position_late_is_far_beyond_it(prompt, expected, bounds):
    if len(prompt.positions) == 1:
        pytest.skip('the model takes positions from its cache, and its family refuses any others')
    late = prompt.positions.copy()
    late[:, prompt.question :] += 1
    logits, rows = replace(prompt, positions=late).run(prompt.embeddings)
    assert noise.apart(logits[-1], expected[0][-1]) > WIDE * bounds[0]
    assert noise.apart(rows, expected[1]) > WIDE * bounds[1]


@pytest.mark.numeric
def test_a_mask_that_hides_one_cell_from_the_question_is_far_beyond_it(prompt, expected, bounds):
    vlm, count = prompt.vlm, len(prompt.ids)
    family, cache = vlm.family, vlm.new_cache()
    if not (family.branches and pass_cache.is_possible(cache)):
        pytest.skip('the model cannot branch')
    cells = family.cells(prompt.ids)

    class Hiding(TokenTree):
        """Takes one cell from what the question sees."""

        def mask(self, first=0, window=None):
            sees = super().mask(first, window)
            sees[prompt.question :, cells[-1]] = False
            return sees

    def logits(tree):
        return vlm.run_tree(vlm.new_cache(), tree, prompt.ids, prompt.embeddings, prompt.positions, range(count))[0]

    assert noise.apart(logits(TokenTree.of(0, [Block(prompt.ids)])), expected[0]) < bounds[0]
    assert noise.apart(logits(Hiding.of(0, [Block(prompt.ids)]))[-1], expected[0][-1]) > WIDE * bounds[0]


@pytest.mark.numeric
def test_one_changed_cell_is_far_beyond_the_noise_of_the_vision_tower(prompt):
    frame = picture(2)
    (pixels, grid), encode = prompt.vlm.family.prepare(frame.rgb), prompt.vlm.family.encode
    bound = noise.bound(pixels, lambda values: encode(values, grid))
    assert noise.apart(encode(pixels, grid), prompt.features[1]) < bound
    rgb = frame.rgb.copy()
    rgb[200:240, 300:340] ^= 0x40
    assert noise.apart(encode(*prompt.vlm.family.prepare(rgb)), prompt.features[1]) > WIDE * bound


@pytest.mark.numeric
def test_one_changed_cell_is_far_beyond_the_noise_of_a_choice(prompt):
    session, question = SceneSession(prompt.vlm, Config()), Question(TEXT, ('red', 'green circle', 'no'))
    session.observe(picture(2))
    before, bound = log_scores(prompt.vlm, session._refresher.state, question), choice_bound(session, question)
    rgb = picture(2).rgb.copy()
    rgb[200:240, 300:340] ^= 0x40
    session.observe(Frame(rgb, stamp_ns=1), force=True)
    assert noise.apart(log_scores(prompt.vlm, session._refresher.state, question), before) > WIDE * bound
