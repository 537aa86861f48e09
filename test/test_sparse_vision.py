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

"""Sparse vision: some cells of a picture, encoded in the surroundings that were kept of an older one."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image
from rounding import WIDE
from tiny_gemma4 import write_tiny_gemma4
from tiny_model import _write_weights, picture, write_tiny_model, write_tiny_qwen2
from tiny_qwen3 import write_tiny_qwen3

from vlm_reuse_node.model import noise
from vlm_reuse_node.model.families.picture_parts import CellPixels, resized_part
from vlm_reuse_node.model.families.sparse_vision import padded, patch_rows
from vlm_reuse_node.model.loading import load


def write_windows(folder):
    """A tiny Qwen2.5-VL with two blocks before the first full attention, and one window block between two full ones."""
    config = json.loads((write_tiny_model(folder) / 'config.json').read_text())
    config['vision_config'] |= {'depth': 5, 'fullatt_block_indexes': [2, 4]}
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'preprocessor_config.json').write_text(
        (folder / 'preprocessor_config.json').read_text().replace(str(112 * 112), str(168 * 168))
    )
    _write_weights(folder, config, seed=0)
    return folder


WRITERS = {
    'qwen2_5_vl': write_windows,
    'qwen2_vl': write_tiny_qwen2,
    'qwen3_vl': lambda folder: write_tiny_qwen3(folder, 'qwen3_vl'),
    'qwen3_vl_moe': lambda folder: write_tiny_qwen3(folder, 'qwen3_vl_moe'),
    'qwen3_5': lambda folder: write_tiny_qwen3(folder, 'qwen3_5'),
    'gemma4': write_tiny_gemma4,
    'gemma4_unified': lambda folder: write_tiny_gemma4(folder, unified=True),
}


@pytest.fixture(scope='module', params=WRITERS)
def family(request, tmp_path_factory):
    """Every family that encodes cells."""
    return load(str(WRITERS[request.param](tmp_path_factory.mktemp('models') / request.param))).family


@pytest.fixture(scope='module')
def windows(tmp_path_factory):
    return load(str(write_windows(tmp_path_factory.mktemp('models') / 'windows'))).family


def seen(family, frame, cells=None, kept=None):
    """What is kept of a picture, after some of its cells were encoded; all of them when None."""
    pixels, grid = family.prepare(frame.rgb)
    return family.encode_cells(pixels, grid, np.arange(grid.cells) if cells is None else np.array(cells), kept)


def difference(one, other):
    return noise.apart(arrays(one), arrays(other))


def arrays(state):
    return [state.features, *(array for block in state.blocks for array in block)]


def bound_of(family, frame):
    """How far rounding may move what is kept of a picture."""
    pixels, grid = family.prepare(frame.rgb)
    return noise.bound(pixels, lambda values: arrays(family.encode_cells(values, grid, np.arange(grid.cells), None)))


def test_all_cells_are_the_dense_pass(family):
    pixels, grid = family.prepare(picture(1).rgb)
    dense, width = family.encode(pixels, grid), family.encode(pixels, grid).shape[-1]
    state = seen(family, picture(1))
    assert state.features.shape == (grid.cells, width)
    assert mx.array_equal(state.features, dense)  # bit for bit: it is the tower's own pass
    again = seen(family, picture(1), kept=seen(family, picture(2)))
    assert difference(again, state) < bound_of(family, picture(1))


@pytest.mark.parametrize('kind', [mx.bfloat16, mx.float16])
@pytest.mark.parametrize('writer', WRITERS)
def test_keeping_what_can_be_patched_changes_no_bit_of_a_whole_picture(writer, kind, tmp_path):
    """In half precision two ways to compute the same features are far apart, so there is one."""
    vlm = load(str(WRITERS[writer](tmp_path / writer)))
    family, model = vlm.family, vlm._model
    model.set_dtype(kind)
    before = [name for name, _ in tree_flatten(model.parameters())]
    pixels, grid = family.prepare(picture(1).rgb)
    kept = family.encode_cells(pixels, grid, np.arange(grid.cells), None)
    assert mx.array_equal(kept.features, family.encode(pixels, grid))
    assert sorted(name for name, _ in tree_flatten(model.parameters())) == sorted(before)


@pytest.mark.parametrize('cells', [[0], [5], [0, 1, 2, 6, 11]])
def test_cells_that_did_not_change_stay_what_they_were(family, cells):
    state = seen(family, picture(1))
    assert difference(seen(family, picture(1), cells, kept=state), state) < bound_of(family, picture(1))


def test_only_the_asked_cells_get_new_features_and_the_kept_state_is_left_alone(family):
    old, before = seen(family, picture(1)), [np.array(array) for array in arrays(seen(family, picture(1)))]
    cells = [1, 2, 6, 10, 11]
    new = seen(family, picture(2), cells, kept=old)
    changed = np.abs(np.array(new.features - old.features)).max(axis=1) > WIDE * bound_of(family, picture(1))
    assert np.flatnonzero(changed).tolist() == cells
    others = np.setdiff1d(np.arange(len(changed)), cells)
    assert np.array_equal(np.array(new.features)[others], before[0][others])
    assert all(np.array_equal(kept, array) for kept, array in zip(before, arrays(old)))


def test_padding_changes_nothing(family):
    """Five cells are run at the length of six; the sixth, asked for beside them, is the fifth once more."""
    old, cells = seen(family, picture(1)), [1, 2, 6, 7, 10]
    assert len(padded(np.array(cells), 12)) == 6
    assert difference(seen(family, picture(2), [*cells, 10], kept=old), seen(family, picture(2), cells, kept=old)) == 0


def test_up_to_the_first_full_attention_a_window_is_exact_and_the_others_are_not_touched(windows):
    pixels, grid = windows.prepare(picture(1).rgb)
    cell, everything, layout = grid.columns + 3, np.arange(grid.cells), windows._layout(grid)
    changed = mx.array(pixels)
    changed[4 * cell : 4 * cell + 4] = windows.prepare(picture(2).rgb)[0][4 * cell : 4 * cell + 4]
    old, dense = (windows.encode_cells(each, grid, everything, None) for each in (pixels, changed))
    new = windows.encode_cells(changed, grid, np.array([cell]), old)
    window = layout.window_of(np.flatnonzero(layout.order == cell))[0]
    inside = np.zeros(4 * grid.cells, bool)
    inside[4 * layout.starts[window] : 4 * layout.starts[window + 1]] = True
    bound = bound_of(windows, picture(1))
    assert 0 < inside.sum() < len(inside)
    for kept, now, fresh in zip(*(map(np.array, state.blocks[0]) for state in (old, new, dense))):
        assert noise.apart(now, fresh) < bound  # the whole picture, as the dense pass has it
        assert np.array_equal(now[:, ~inside], kept[:, ~inside])
        assert np.abs(now - kept)[:, inside].max() > WIDE * bound
    # From there on every cell sees every other: the kept features are not what a dense pass has.
    assert noise.apart(old.features[:cell], dense.features[:cell]) > WIDE * bound


@pytest.mark.parametrize('size', [(480, 640), (1080, 1920), (640, 480), (90, 130)])
@pytest.mark.parametrize('cells', [[0], [7, 8], [11], [3, 9]])
def test_cells_prepared_by_themselves_are_encoded_as_from_the_whole_picture(family, size, cells):
    rgb, cells = picture(2, size=size).rgb, np.array(cells)
    pixels, grid = family.prepare(rgb)
    old = family.encode_cells(family.prepare(picture(1, size=size).rgb)[0], grid, np.arange(grid.cells), None)
    cells = np.unique(np.minimum(cells, grid.cells - 1))
    part = family.prepare_cells(rgb, grid, cells)
    new, expected = (family.encode_cells(each, grid, cells, old) for each in (part, pixels))
    assert difference(new, expected) < 0.05 * difference(expected, old)


@pytest.mark.parametrize('cells', [[0], [2, 3], [29], [0, 29]])
def test_a_part_of_a_picture_is_prepared_without_the_rest(windows, cells):
    rgb = picture(2).rgb
    pixels, grid = windows.prepare(rgb)
    part = windows.prepare_cells(rgb, grid, np.array(cells))
    read = windows.read_cells(grid, np.array(cells))
    assert isinstance(part, CellPixels) and set(cells) <= set(read) <= set(part.cells)
    assert len(part.cells) < grid.cells or cells == [0, 29]
    grey_level = (pixels.max() - pixels.min()).item() / 255
    assert mx.abs(part.of(read, 4) - pixels[patch_rows(read, 4)]).max().item() < 3 * grey_level


def test_a_picture_whose_parts_are_not_what_they_are_in_the_whole_is_prepared_whole(tmp_path):
    family = load(str(write_windows(tmp_path / 'other'))).family
    prepare = family._image_processor

    def another_filter(images):
        return prepare([images[0].resize(images[0].size[::-1]).resize(images[0].size)])

    family._image_processor = another_filter  # `prepare` looks it up, the parts have the old one
    rgb = picture(2).rgb
    pixels, grid = family.prepare(rgb)
    assert mx.array_equal(family.prepare_cells(rgb, grid, np.array([0])), pixels)


@pytest.mark.parametrize(
    'sides, resized, columns_first',
    [
        ((480, 640), (252, 336), True),
        ((480, 640), (476, 644), False),
        ((90, 130), (252, 364), True),
        ((1080, 1920), (196, 364), True),
    ],
)
def test_a_resized_part_is_cut_out_of_the_resized_whole(sides, resized, columns_first):
    rgb, (high, wide) = np.random.default_rng(0).integers(0, 256, (*sides, 3), np.uint8), resized
    whole = np.array(Image.fromarray(rgb).resize((wide, high), Image.Resampling.BICUBIC)).astype(int)
    for rows, columns in (
        ((0, high), (0, wide)),
        ((28, 84), (56, 84)),
        ((0, 28), (wide - 28, wide)),
        ((high - 56, high), (0, 28)),
    ):
        part = slice(*rows), slice(*columns)
        apart = np.abs(resized_part(rgb, resized, part, columns_first) - whole[part])
        assert apart.max() <= 2 and (apart > 0).mean() < 0.01


def test_what_is_kept_is_counted(family):
    state = seen(family, picture(1))
    assert state.nbytes == sum(array.size * array.itemsize for array in arrays(state))
    if not state.blocks:
        return  # no cell looks at another
    heads, patches, width = state.blocks[0][0].shape
    assert len({array.shape for block in state.blocks for array in block}) == 1
    assert patches % len(state.features) == 0


@pytest.mark.parametrize('count, length', [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (9, 12), (13, 16), (17, 20)])
def test_padding_repeats_the_last_up_to_one_of_few_lengths(count, length):
    items = padded(np.arange(count), 20)
    assert len(items) == length and items[:count].tolist() == list(range(count)) and set(items[count:]) <= {count - 1}
