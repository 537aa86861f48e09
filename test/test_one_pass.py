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

"""One pass finds what the same tokens find one after the other, on a cache that keeps every row (flat_rows.py)."""

import random
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from flat_rows import FlatState, in_order, last_rows
from mlx_vlm.models.cache import ArraysCache, KVCache, QuantizedKVCache, RotatingKVCache
from rounding import WIDE, state_bound
from tiny_gemma4 import write_tiny_gemma4
from tiny_model import picture, write_tiny_model
from tiny_qwen3 import write_tiny_qwen3

from vlm_reuse_node.model import loading
from vlm_reuse_node.model import vlm as vlms
from vlm_reuse_node.model.noise import apart
from vlm_reuse_node.model.one_pass import Passes
from vlm_reuse_node.model.token_tree import Block
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.state import State
from vlm_reuse_node.session.turn import Halt

CELLS = 12
FIRST, LATER = 19, 14  # tokens of the slots of Gemma 4: the first has the begin of the chat, too
TEXTS = 'what color is the square ?', 'how many objects are there ?', 'is it red ?'
CHOICES = ('red', 'green circle'), ('one', 'two', 'no it is not'), ('yes', 'no')
TWO_WAY = {'use_bidirectional_attention': 'vision'}
GEMMA = {'two-way': {}, 'layer inputs, two-way': {'shape': 'layer_inputs'} | TWO_WAY}
WINDOWS = {
    'rings that drop parts of a slot': 7,
    'rings of a slot and a half': 24,
}
WRITERS = {
    'qwen2_5_vl': write_tiny_model,
    'qwen3_vl_moe': lambda folder: write_tiny_qwen3(folder, 'qwen3_vl_moe'),
    **{
        f'gemma4 {kind}, {rings}': partial(write_tiny_gemma4, window=window, **shape)
        for kind, shape in GEMMA.items()
        for rings, window in WINDOWS.items()
        if kind == 'two-way' or rings == 'rings of a slot and a half'
    },
}


@pytest.fixture(scope='module', params=WRITERS)
def vlm(request, tmp_path_factory):
    """A tiny model of each kind that branches."""
    vlm = loading.load(str(WRITERS[request.param](tmp_path_factory.mktemp('models') / 'tiny')))
    assert vlm.family.branches
    return vlm


@pytest.fixture(scope='module')
def bounds(vlm):
    """How far rounding may move logits, and keys and values, of two pictures and a question about them."""

    def logits(state):
        chains = zip(TEXTS, ('red', 'no it is not', 'yes'))
        return [logits for chain in chains for logits in in_turn(state, [tokens(vlm, text) for text in chain])]

    both = [
        [state_bound(vlm, list(map(picture, seeds)), measure) for measure in (logits, kept)]
        for seeds in ((1, 2), (3, 4))
    ]
    return [max(bounds) for bounds in zip(*both)]


def tokens(vlm, text):
    """A question with the end of the turn, or a choice."""
    template = vlm.template('', 1)
    return template.question(text) if text in TEXTS else template.choices([text])[0]


def in_turn(state, texts):
    """Logits of texts behind each other and behind the state, by plain calls."""
    logits, start, vlm = [], state.next_position, state._vlm
    for ids in texts:
        logits.append(vlm.run(state.cache, ids, vlm.family.text_positions(start, len(ids)), keep=len(ids)))
        start += len(ids)
    state.restore()
    return logits


def kept(state):
    """Keys and values of all layers, in the order of their tokens."""
    return [np.array(rows) for layer in state.cache for rows in in_order(layer)]


def expected_rows(state, flat):
    """Those of the rows of a flat state that the layers of another one keep."""
    return [row for layer, rows in zip(state.cache, flat.rows) for row in last_rows(rows, in_order(layer))]


def asked(vlm, count):
    """Blocks of so many questions with their choices."""
    blocks = []
    for text, choices in list(zip(TEXTS, CHOICES))[:count]:
        number = len(blocks)
        blocks.append(Block(tokens(vlm, text)))
        blocks += [Block(tokens(vlm, choice), number, is_answer=True) for choice in choices]
    return blocks


def drafted(vlm):
    """A question, and an answer that may be its own."""
    return [Block(tokens(vlm, TEXTS[0])), Block(tokens(vlm, 'no it is not'), 0, is_answer=True)]


def behind(blocks, count):
    """The blocks, when so many others come before them in the call."""
    return [block._replace(parent=block.parent if block.parent < 0 else block.parent + count) for block in blocks]


def chain(blocks, number):
    """The texts that a block follows, and itself."""
    block = blocks[number]
    return [*(chain(blocks, block.parent) if block.parent >= 0 else []), block.ids]


def check_logits(flat, blocks, reading, bound):
    """They are those of each block behind what it follows, and nothing else."""
    for number, logits in enumerate(reading.logits):
        found = flat.logits(*chain(blocks, number))[-1]
        assert logits.shape == (len(blocks[number].ids) if blocks[number].is_answer else 1, found.shape[1])
        assert apart(logits, found[-len(logits) :]) < bound


class Twins:
    """A state in which new tokens wait, the same state that computes them at once, and its reference."""

    def __init__(self, vlm, *seeds):
        template_for = partial(vlm.template, '')
        self.vlm, self.state, self.eager = vlm, State(vlm, template_for), State(vlm, template_for)
        self.flat = FlatState(vlm, template_for)
        for seed in seeds:
            self.append(seed)
        self.state.settle()

    @property
    def all(self):
        return self.state, self.eager, self.flat

    def see(self, seed):
        return EncodedFrame.see(self.vlm, picture(seed), keep=self.vlm.family.encodes_cells)

    def append(self, seed):
        encoded = self.see(seed)
        self.state.append(encoded, later=True)
        self.eager.append(encoded)
        self.flat.append(encoded)

    def replace(self, seed):
        for each in self.all:
            each.drop_live()
        self.append(seed)

    def rewrite(self, seed, cells):
        cells = np.array(sorted(cells))
        assert self.state.can_rewrite == self.eager.can_rewrite
        newer = self.eager.live.with_cells(self.vlm, picture(seed), cells)
        self.state.rewrite(newer, cells, later=True)
        self.eager.rewrite(newer, cells)
        self.flat.rewrite(newer, cells)

    def read(self, blocks, **given):
        """Read, and count the passes."""
        before = self.vlm.meter.done
        reading = self.state.read(blocks, **given)
        return reading, (self.vlm.meter.done - before).passes

    def wait(self, what, draw):
        """Let something wait. Returns whether that is possible."""
        if what == 'slot':
            (self.append if len(self.state.frames) < 3 and draw.random() < 0.5 else self.replace)(draw.randrange(100))
        elif what == 'cells':
            if not self.state.can_rewrite:
                return False
            self.rewrite(draw.randrange(100), draw.sample(range(CELLS), draw.randint(1, CELLS)))
        return True


@pytest.mark.parametrize('seed', [1])
def test_what_waits_and_what_is_asked_go_together_and_are_as_one_after_the_other(vlm, bounds, seed):
    draw, twins = random.Random(seed), Twins(vlm, 1)
    plan = [(what, kind) for what in ('slot', 'cells', 'nothing') for kind in (1, 3, 'draft')]
    draw.shuffle(plan)
    for what, kind in plan:
        if not twins.wait(what, draw):
            continue
        blocks = drafted(vlm) if kind == 'draft' else asked(vlm, kind)
        reading, passes = twins.read(blocks)
        assert passes == 1
        check_logits(twins.flat, blocks, reading, bounds[0])
        # What is kept is the state as if nothing had been asked.
        assert (twins.state.tokens, twins.state.next_position) == (twins.eager.tokens, twins.eager.next_position)
        assert twins.state.identity == twins.eager.identity
        found = kept(twins.state)
        assert {layer.offset for layer in twins.state.cache} == {twins.state.tokens}
        assert apart(found, kept(twins.eager)) < bounds[1]
        assert apart(found, expected_rows(twins.state, twins.flat)) < bounds[1]
        twins.read(drafted(vlm), stay=2)
        twins.state.restore()
        assert all(map(np.array_equal, kept(twins.state), found))


def test_a_question_does_not_hear_the_others(vlm, bounds):
    twins = Twins(vlm, 1)
    twins.replace(2)
    alone = twins.read(asked(vlm, 1))[0].logits
    twins.replace(2)
    together = twins.read(asked(vlm, 3))[0].logits
    assert apart(together[: len(alone)], alone) < bounds[0]
    twins.replace(3)
    assert apart(twins.read(asked(vlm, 1))[0].logits, alone) > WIDE * bounds[0]  # but the picture


@pytest.mark.parametrize('what', ['slot', 'cells', 'nothing'])
def test_behind_any_cut_it_goes_on_as_a_cold_run(vlm, bounds, what):
    twins, draw = Twins(vlm, 1, 2), random.Random(what)
    if not twins.wait(what, draw):
        pytest.skip('the rings keep no whole slot')
    blocks, others = drafted(vlm), [tokens(vlm, text) for text in TEXTS]
    ids = [token for block in blocks for token in block.ids]
    for count in [*range(len(ids) + 1), 3, 0, len(ids)]:
        reading, _ = twins.read(blocks, stay=draw.randint(0, 2))
        for tried in (draw.randint(0, len(ids)), count):
            reading.keep(tried)
        assert {layer.offset for layer in twins.state.cache} == {twins.state.tokens + count}
        more = others[count % 3]
        place = twins.state.next_position + count
        logits = vlm.run(twins.state.cache, more, vlm.family.text_positions(place, len(more)), keep=len(more))
        following = [*([ids[:count]] if count else []), more]
        assert apart(logits, twins.flat.logits(*following)[-1]) < bounds[0]
        twins.state.restore()
    assert apart(kept(twins.state), kept(twins.eager)) < bounds[1]


@pytest.mark.parametrize('stay', [1, 2])
def test_blocks_that_stay_are_what_comes_next_sees(vlm, bounds, stay):
    """Tokens that are decoded one by one; the other questions are gone."""
    twins = Twins(vlm, 1)
    twins.replace(2)
    blocks = [*drafted(vlm), *behind(asked(vlm, 2), 2)]
    twins.read(blocks, stay=stay)
    before = [block.ids for block in blocks[:stay]]
    decoded, count = tokens(vlm, 'two'), sum(map(len, before))
    decoded = [*decoded, *tokens(vlm, 'red'), *tokens(vlm, 'yes')]
    expected = twins.flat.logits(*before, decoded)[-1]
    for number, token in enumerate(decoded):
        place = vlm.family.text_positions(twins.state.next_position + count + number, 1)
        assert apart(vlm.run(twins.state.cache, [token], place), expected[number : number + 1]) < bounds[0]


@pytest.mark.parametrize('what', ['slot', 'cells', 'nothing'])
@pytest.mark.parametrize('limit', [5, 13])
def test_what_does_not_fit_into_a_call_goes_in_turn_and_finds_the_same(vlm, bounds, monkeypatch, what, limit):
    twins, draw = Twins(vlm, 1), random.Random(f'{what} {limit}')
    if not twins.wait(what, draw):
        pytest.skip('the rings keep no whole slot')
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', limit)
    forward = vlm.family.forward
    monkeypatch.setattr(vlm.family, 'forward', lambda ids, *args, **kw: calls.append(ids) or forward(ids, *args, **kw))
    short = [
        Block(tokens(vlm, 'red')),
        Block(tokens(vlm, 'yes'), 0, is_answer=True),
    ]  # may go with the last chunk of what waits
    for number, blocks in enumerate((short, asked(vlm, 3), drafted(vlm))):
        calls = []
        before = vlm.meter.done
        reading, _ = twins.read(blocks, check=lambda: calls.append(None))
        spent = vlm.meter.done - before
        # Whoever asked is heard before every call.
        assert all(earlier is None for earlier, later in pairwise([0, *calls]) if later is not None)
        calls = [ids for ids in calls if ids is not None]
        # Nothing goes through twice. What waits goes through once, with some of its cells twice to fill up.
        assert spent.prefill_tokens == sum(len(block.ids) for block in blocks) or number == 0
        longest = CELLS + 1 if vlm.family.two_way else 0  # a picture that sees both ways is not cut
        assert max(map(len, calls)) <= max(limit, longest)
        check_logits(twins.flat, blocks, reading, bounds[0])
        assert apart(kept(twins.state), kept(twins.eager)) < bounds[1]


@pytest.mark.parametrize('what', ['slot', 'nothing'])
def test_as_many_tokens_as_a_call_takes_go_together(vlm, monkeypatch, what):
    twins, blocks = Twins(vlm, 1), asked(vlm, 3)
    for spare in (0, -1):
        count = sum(len(block.ids) for block in blocks)
        if what == 'slot':
            twins.replace(2)
            count += twins.state.tokens
        monkeypatch.setattr(vlms, 'PREFILL_CHUNK', count + spare)
        assert twins.state.can_read_at_once(blocks) == (spare == 0)
        reading, passes = twins.read(blocks)
        assert passes == 1 if spare == 0 else passes > 1


def test_a_model_that_cannot_branch_finds_the_same_in_turn(vlm, bounds, monkeypatch):
    twins, blocks = Twins(vlm, 1), asked(vlm, 3)
    assert twins.state.can_branch
    monkeypatch.setattr(vlm.family, 'branches', False)
    assert not twins.state.can_branch and not twins.state.can_read_at_once(blocks)
    twins.append(2)
    reading, passes = twins.read(blocks)
    assert passes == 1 + len(blocks)
    check_logits(twins.flat, blocks, reading, bounds[0])
    assert apart(kept(twins.state), kept(twins.eager)) < bounds[1]


def test_a_recurrent_or_quantised_cache_cannot_branch(tmp_path):
    vlm = loading.load(str(write_tiny_model(tmp_path / 'tiny')))
    for part in (QuantizedKVCache(), ArraysCache(size=1)):
        assert not Passes(vlm).can_branch([KVCache(), part])


@pytest.mark.parametrize('limit', [5, 13])
def test_what_stays_is_behind_the_state_and_the_others_do_not_see_it_also_in_turn(vlm, bounds, monkeypatch, limit):
    twins = Twins(vlm, 1)
    twins.replace(2)
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', limit)
    blocks = [*drafted(vlm), *behind(asked(vlm, 2), 2)]
    for stay in (2, 1, 0):
        reading, _ = twins.read(blocks, stay=stay)
        check_logits(twins.flat, blocks, reading, bounds[0])
        before = [block.ids for block in blocks[:stay]]
        count, more = sum(map(len, before)), tokens(vlm, TEXTS[2])
        assert {layer.offset for layer in twins.state.cache} == {twins.state.tokens + count}
        place = vlm.family.text_positions(twins.state.next_position + count, len(more))
        logits = vlm.run(twins.state.cache, more, place)
        assert apart(logits, twins.flat.logits(*before, more)[-1][-1:]) < bounds[0]
        twins.state.restore()
        assert apart(kept(twins.state), kept(twins.eager)) < bounds[1]
        reading, _ = twins.read(blocks, stay=stay)
        reading.keep(0)
        assert apart(kept(twins.state), kept(twins.eager)) < bounds[1]
        assert {layer.offset for layer in twins.state.cache} == {twins.state.tokens}


@pytest.mark.parametrize('what', ['slot', 'cells'])
def test_what_waits_can_be_computed_before_it_is_asked_about(vlm, bounds, what):
    twins = Twins(vlm, 1, 2)
    if not twins.wait(what, random.Random(what)):
        pytest.skip('the rings keep no whole slot')
    twins.state.settle()
    assert apart(kept(twins.state), expected_rows(twins.state, twins.flat)) < bounds[1]
    before = vlm.meter.done
    twins.state.settle()
    assert vlm.meter.done == before
    reading, passes = twins.read(asked(vlm, 1))
    assert passes == 1
    check_logits(twins.flat, asked(vlm, 1), reading, bounds[0])


@pytest.mark.parametrize('what', ['slot', 'cells'])
@pytest.mark.parametrize('at', [1, 2])
def test_a_pass_that_was_stopped_waits_on(vlm, bounds, monkeypatch, what, at):
    twins = Twins(vlm, 1, 2)
    if not twins.wait(what, random.Random(what)):
        pytest.skip('the rings keep no whole slot')
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', 5)
    looks = iter(range(at - 1))

    def check():
        if next(looks, None) is None:
            raise Halt(Status.CANCELLED, 'enough')

    for stopped in (twins.state.settle, partial(twins.state.read, asked(vlm, 1), check=check)):
        with pytest.raises(Halt):
            stopped(check=check)
        assert twins.state.identity == twins.eager.identity and twins.state.has_live
        looks = iter(range(at - 1))
    monkeypatch.undo()
    reading, passes = twins.read(asked(vlm, 1))
    assert passes == 1
    check_logits(twins.flat, asked(vlm, 1), reading, bounds[0])
    assert apart(kept(twins.state), kept(twins.eager)) < bounds[1]


def test_the_models_here_have_the_rings_that_they_are_said_to_have(tmp_path):
    sizes = []
    vlm = loading.load(str(write_tiny_gemma4(tmp_path / 'tiny', window=128)))
    twins = Twins(vlm, 1)
    sizes.append(twins.state.tokens)
    twins.append(2)
    assert [*sizes, twins.state.tokens] == [FIRST, FIRST + LATER]
    assert {type(layer) for layer in twins.state.cache} == {KVCache, RotatingKVCache}
