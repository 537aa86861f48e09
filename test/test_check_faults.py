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

"""A model or an engine that is broken on purpose: the check finds every breakage, and does not end with 0."""

import dataclasses
import json

import mlx.core as mx
import mlx_vlm
import numpy as np
import pytest
from mlx_vlm.models.cache import ArraysCache, KVCache
from tiny_gemma4 import write_tiny_gemma4
from tiny_generic import write_tiny_generic
from tiny_model import picture, write_tiny_model
from tiny_qwen3 import write_tiny_qwen3

from vlm_reuse_node.check import cli, pictures, self_test, stages
from vlm_reuse_node.check.claim import Mark
from vlm_reuse_node.check.levels import why_no_branches
from vlm_reuse_node.config import Config
from vlm_reuse_node.model import kv_cache
from vlm_reuse_node.model.families.base import VisionState, family_for
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.model.one_pass import Passes
from vlm_reuse_node.model.token_tree import TokenTree
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.session.answer_memory import AnswerMemory
from vlm_reuse_node.session.answerer import Answerer
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.live_slot import LiveSlot
from vlm_reuse_node.session.state import State

QUESTIONS = cli.FEW
MODELS = {
    'qwen2_5_vl': write_tiny_model,
    'qwen3_vl': lambda folder: write_tiny_qwen3(folder, 'qwen3_vl'),
    'qwen3_5': lambda folder: write_tiny_qwen3(folder, 'qwen3_5'),
    'gemma4': lambda folder: write_tiny_gemma4(folder, 'layer_inputs', window=70),
    'gemma4 window': lambda folder: write_tiny_gemma4(folder, 'layer_inputs', window=7),
    'idefics3': lambda folder: write_tiny_generic(folder, 'idefics3'),
}
# Under other kernels too (test_kernels.py), where there is time for two.
NUMERIC = {kind: [pytest.mark.numeric] if kind in ('qwen2_5_vl', 'gemma4') else [] for kind in MODELS}


def load_half(folder):
    """Load a model in bfloat16, which `loading.load` makes float32 on a CPU."""
    model, processor = mlx_vlm.load(str(folder))
    model.set_dtype(mx.bfloat16)
    return Vlm('half', model, processor, family_for(model.config.model_type)(model, processor), 'half')


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Loads a tiny model of each kind, once."""
    loaded = {}

    def model(kind):
        if kind not in loaded:
            name, _, half = kind.partition(' in ')
            folder = MODELS[name](tmp_path_factory.mktemp('models') / 'tiny')
            loaded[kind] = load_half(folder) if half else load(str(folder))
        return loaded[kind]

    return model


@pytest.fixture
def check(models, monkeypatch):
    """Checks a tiny model on four pictures, without measuring times."""
    monkeypatch.setattr(stages.Stages, 'measure', lambda self: [])
    four = pictures.in_turn([picture(seed) for seed in range(4)], 'of blocks')
    return lambda kind: self_test.check(models(kind), Config(model=kind), four, QUESTIONS, lambda part: None)


def marks(report):
    return {claim.name: claim.mark for claim in report.claims}


@pytest.mark.parametrize('kind', [pytest.param(kind, marks=NUMERIC[kind]) for kind in MODELS])
def test_a_healthy_model_is_trusted(kind, check):
    report = check(kind)
    assert report.is_trusted and report.faults == []
    found = marks(report)
    assert {found[name] for name in ('mlx-vlm', 'full', 'reuse', 'frame', 'history', 'one pass')} == {Mark.PASS}
    assert (found['patch all'] == Mark.PASS) == (kind in ('qwen2_5_vl', 'qwen3_vl', 'qwen3_5', 'gemma4'))
    assert (found['JSON schema'] == Mark.PASS) == (kind not in ('qwen2_5_vl', 'gemma4', 'gemma4 window'))
    for claim in report.claims:
        assert bool(claim.reason) == (claim.mark == Mark.NOT_AVAILABLE)
        assert claim.restored == claim.restored_of and (claim.equal == claim.asked or claim.is_measurement)


def late_questions(monkeypatch):
    """The snapshot tells a position that is one too high."""
    append = State.append

    def late(self, *args, **kwargs):
        tokens = append(self, *args, **kwargs)
        self.next_position += 1
        return tokens

    monkeypatch.setattr(State, 'append', late)


def late_tokens(monkeypatch):
    """Decoding goes on one position too late."""
    decode = Vlm.decode
    monkeypatch.setattr(
        Vlm, 'decode', lambda self, cache, logits, start, *args, **kwargs: decode(
            self, cache, logits, start + 1, *args, **kwargs
        ),
    )  # fmt: skip


def stale_features(monkeypatch):
    """One cell of a new picture is what the picture before it showed there."""
    see, before = EncodedFrame.see.__func__, []

    def stale(cls, *args, **kwargs):
        seen = see(cls, *args, **kwargs)
        features = seen.features
        if before and before[0].shape == features.shape:
            features = mx.concatenate([features[:-1], before[0][-1:]])
        before[:] = [seen.features]
        return dataclasses.replace(seen, features=features)

    monkeypatch.setattr(EncodedFrame, 'see', classmethod(stale))


def row_left_behind(monkeypatch):
    """Restoring leaves the last row of what was there."""
    restore = kv_cache.restore

    def leave(cache, snapshot):
        longer = kv_cache.held_tokens(cache) > snapshot.tokens
        restore(cache, snapshot)
        for part in cache:
            if longer and type(part) is KVCache:
                part.offset += 1

    monkeypatch.setattr(kv_cache, 'restore', leave)


def recurrent_state_left_behind(monkeypatch):
    """Restoring leaves recurrent layers as they are."""
    restore = kv_cache.restore

    def leave(cache, snapshot):
        kept = [dict(vars(part)) for part in cache]
        restore(cache, snapshot)
        for part, attributes in zip(cache, kept):
            if type(part) is ArraysCache:
                vars(part).update(attributes)

    monkeypatch.setattr(kv_cache, 'restore', leave)


def rows_overwritten(monkeypatch):
    """A question writes over the first row of the state."""
    choose = Answerer.choose

    def overwrite(self, state, *args):
        outcomes = choose(self, state, *args)
        layer = state.cache[-1]
        layer.keys[..., 0, :] = layer.keys[..., 0, :] + 1
        return outcomes

    monkeypatch.setattr(Answerer, 'choose', overwrite)


def choices_that_see_each_other(monkeypatch):
    """A choice sees all tokens before it, those of other choices too."""
    mask = TokenTree.mask

    def causal(self, first=0, window=None):
        sees = mask(self, first, window)
        count = sees.shape[0] - len(self.rows)
        if count > 1:
            behind = np.tril(np.ones((count, count), bool))
            sees[-count:, -count:] |= behind
        return sees

    monkeypatch.setattr(TokenTree, 'mask', causal)


def hidden_cell(monkeypatch):
    """The question does not see the first token of the prompt."""
    mask = TokenTree.mask

    def hiding(self, first=0, window=None):
        sees = mask(self, first, window)
        if not first and sees.shape[1] > 1:
            sees[-1, 0] = False
        return sees

    monkeypatch.setattr(TokenTree, 'mask', hiding)


def old_memories(monkeypatch):
    """An answer is remembered whatever the state."""
    recall, remember = AnswerMemory.recall, AnswerMemory.remember
    monkeypatch.setattr(AnswerMemory, 'recall', lambda self, version, *args: recall(self, 0, *args))
    monkeypatch.setattr(AnswerMemory, 'remember', lambda self, version, *args: remember(self, 0, *args))


def second_best(monkeypatch):
    """The answer is not the most probable choice."""
    choose = Answerer.choose

    def second(self, *args):
        return [
            dataclasses.replace(outcome, choice_index=int(np.argsort(outcome.choice_scores)[-2]))
            for outcome in choose(self, *args)
        ]

    monkeypatch.setattr(Answerer, 'choose', second)


def many_passes(monkeypatch):
    """Question and choices are read in turn, for nothing."""
    monkeypatch.setattr(Passes, 'fit', lambda *args: False)


def failing_model(monkeypatch):
    """Decoding raises."""

    def fail(*args, **kwargs):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(Vlm, 'decode', fail)


BREAKAGES = {
    late_questions: {'full', 'reuse', 'frame', 'history'},
    late_tokens: {'reuse', 'frame', 'history'},
    stale_features: {'frame', 'history'},
    row_left_behind: {'reuse'},
    rows_overwritten: {'reuse'},
    choices_that_see_each_other: {'full', 'reuse'},
    hidden_cell: {'full', 'reuse'},
    old_memories: {'frame', 'history'},
    second_best: {'full', 'reuse', 'frame', 'history'},
    many_passes: {'one pass'},
    failing_model: {'reuse', 'frame'},
}


@pytest.mark.parametrize('breakage', BREAKAGES, ids=lambda each: each.__name__)
def test_a_broken_engine_is_found(breakage, check, monkeypatch):
    breakage(monkeypatch)
    report = check('qwen2_5_vl')
    assert not report.is_trusted
    assert {name for name, mark in marks(report).items() if mark == Mark.FAULT} >= BREAKAGES[breakage]


@pytest.mark.parametrize('breakage', [None, late_questions, stale_features, row_left_behind, old_memories])
def test_half_precision_is_checked_too(breakage, check, monkeypatch):
    if breakage:
        breakage(monkeypatch)
    report = check('qwen2_5_vl in bfloat16')
    assert report.is_trusted == (breakage is None) and report.model.precision == 'bfloat16'


def test_a_recurrent_state_that_is_not_restored_is_found(check, monkeypatch):
    recurrent_state_left_behind(monkeypatch)
    assert marks(check('qwen3_5'))['reuse'] == Mark.FAULT


def test_a_checkpoint_behind_the_change_is_found(check, monkeypatch):
    monkeypatch.setattr(LiveSlot, 'point_before', lambda slot, cell: (slot.begin, *slot.checkpoints)[-1])
    found = marks(check('qwen3_5'))
    assert found['patch all'] == Mark.FAULT and found['frame'] == Mark.PASS


def test_a_checkpoint_that_is_the_state_before_the_slot_is_found(check, monkeypatch):
    """The recurrent layers start from the wrong place, the others from the right one."""
    before = LiveSlot.point_before

    def mixed(slot, cell):
        point = before(slot, cell)
        parts = [own if isinstance(own, int) else first for own, first in zip(point.parts, slot.begin.parts)]
        object.__setattr__(point, 'parts', tuple(parts))
        return point

    monkeypatch.setattr(LiveSlot, 'point_before', mixed)
    found = marks(check('qwen3_5'))
    assert found['patch same'] == Mark.FAULT and found['frame'] == Mark.PASS


@pytest.mark.parametrize('kind', ['qwen2_5_vl', 'qwen3_vl'])
def test_a_family_with_rows_for_columns_is_found_by_mlx_vlm_alone(kind, check, models, monkeypatch):
    """Warm and cold are broken alike."""
    family = type(models(kind).family)
    positions = family.positions
    monkeypatch.setattr(family, 'positions', lambda *args: positions(*args)[[0, 2, 1]])
    found = marks(check(kind))
    assert found['mlx-vlm'] == Mark.FAULT and found['frame'] == Mark.PASS


@pytest.mark.parametrize('kind', ['qwen2_5_vl', 'qwen3_vl', 'qwen3_5', 'gemma4'])
def test_a_patch_that_leaves_one_cell_is_found(kind, check, models, monkeypatch):
    family = type(models(kind).family)
    encode = family.encode_cells

    def forget(self, pixels, grid, cells, older):
        newer = encode(self, pixels, grid, cells, older)
        if older is None:
            return newer
        keep = mx.array(np.arange(grid.cells) == cells[-1])[:, None]
        return VisionState(mx.where(keep, older.features, newer.features), newer.blocks)

    monkeypatch.setattr(family, 'encode_cells', forget)
    found = marks(check(kind))
    assert found['patch all'] == Mark.FAULT and found['frame'] == Mark.PASS


@pytest.mark.parametrize('kind', ['qwen2_5_vl', 'gemma4'])
def test_a_patch_that_is_written_one_row_off_is_found(kind, check, monkeypatch):
    rewrite = State.rewrite

    def shifted(self, encoded, cells, *args, **kwargs):
        return rewrite(self, encoded, np.unique(np.minimum(cells + 1, encoded.grid.cells - 1)), *args, **kwargs)

    monkeypatch.setattr(State, 'rewrite', shifted)
    assert marks(check(kind))['patch all'] == Mark.FAULT


def test_the_exit_code_tells(model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, 'RUNS', 1)
    arguments = ['--model', str(model_dir), '--questions', str(QUESTIONS), '--out', str(tmp_path)]
    assert cli.main(arguments) == 0
    assert 'every claim held' in capsys.readouterr().out
    late_questions(monkeypatch)
    assert cli.main(arguments) == cli.EXIT_USAGE  # the first result is not replaced in silence
    assert '--overwrite' in capsys.readouterr().err
    assert cli.main([*arguments, '--overwrite']) == cli.EXIT_FAILED
    assert 'FAULT  do not trust this model here' in capsys.readouterr().out
    assert json.loads((tmp_path / 'check.json').read_text())['trusted'] is False


def test_a_model_that_cannot_branch_answers_in_turn_and_is_trusted(check, models, monkeypatch):
    monkeypatch.setattr(models('idefics3').family, 'branches', False)
    report = check('idefics3')
    (passes,) = (claim for claim in report.claims if claim.name == 'one pass')
    assert report.is_trusted and passes.mark == Mark.NOT_AVAILABLE and 'in turn' in passes.reason
    assert min(passes.passes) > 1


def test_a_cache_that_cannot_branch_is_named(models):
    vlm = models('qwen3_5')
    assert 'ArraysCache' in why_no_branches(vlm, vlm.new_cache())
