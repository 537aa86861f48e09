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

"""Qwen3.5's recurrent layers: a state put back goes on as the one it was, whatever was asked in between.

These tests run all of mlx-vlm's own code; others replace its slow inverse (tiny_qwen3.py).
"""

from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.cache import ArraysCache, KVCache
from mlx_vlm.models.qwen3_5 import gated_delta
from rounding import WIDE, choice_bound, choices_apart
from tiny_model import picture
from tiny_qwen3 import CONTEXT, INVERSE_OF_MLX_VLM, prompt, run

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import kv_cache, noise
from vlm_reuse_node.model.token_tree import Block
from vlm_reuse_node.model.vlm import PREFILL_CHUNK
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXT = 'how many objects are there , and what is the color of the square on the left ?'
OTHER = 'what is it ?'
LONGEST = 3000


@pytest.fixture(scope='module', autouse=True)
def inverse():
    """mlx-vlm's own; gives the one that other tests use."""
    with pytest.MonkeyPatch.context() as patch:
        quick = gated_delta._invert_unit_lower
        patch.setattr(gated_delta, '_invert_unit_lower', INVERSE_OF_MLX_VLM)
        yield quick


@pytest.fixture(scope='module')
def model_dir(recurrent_dir):
    return recurrent_dir


@pytest.fixture(scope='module')
def vlm(recurrent):
    return recurrent


@pytest.fixture
def prefix(vlm):
    """Two pictures' prompt up to the snapshot: ids, positions, embeddings."""
    ids, positions, embeddings = prompt(vlm, TEXT, [picture(1), picture(2, size=(320, 960))])
    end = vlm.family.slots(ids)[-1]
    return ids[:end], positions[:, :end], embeddings[:, :end]


def prefilled(vlm, prefix):
    """A cache that ends at the snapshot, and the position behind it."""
    ids, positions, embeddings = prefix
    cache = vlm.new_cache()
    vlm.run(cache, ids, positions, embeddings=embeddings)
    return cache, int(positions.max()) + 1


def continued(vlm, cache, ids, start, tokens=4):
    """The last logits of a question behind a cache, (vocabulary,), and the first tokens of its answer."""
    logits = vlm.run(cache, ids, vlm.family.text_positions(start, len(ids)))
    return np.array(logits[-1]), vlm.decode(cache, logits, start + len(ids), tokens)


def words(vlm, length, seed=0):
    """So many tokens of plain text."""
    special = min(vlm.template('', 1)._special)
    return np.random.default_rng(seed).integers(0, special, length).tolist()


def test_the_quick_inverse_of_the_other_tests_is_that_of_mlx_vlm_but_for_rounding(inverse):
    triangles = mx.tril(0.2 * mx.random.normal((2, 3, 64, 64), key=mx.random.key(1)), -1) + mx.eye(64)
    exact = np.linalg.inv(np.array(triangles, np.float64))
    errors = [np.abs(np.array(invert(triangles, 64)) - exact).max() for invert in (inverse, INVERSE_OF_MLX_VLM)]
    assert inverse is not INVERSE_OF_MLX_VLM and max(errors) < 1e-5 * np.abs(exact).max()


def test_recurrent_and_attention_layers_have_their_own_kind_of_cache(vlm):
    assert [type(entry) for entry in vlm.new_cache()] == [ArraysCache, KVCache] * 2


def test_two_branches_from_one_snapshot_equal_two_cold_runs(vlm, prefix):
    cache, start = prefilled(vlm, prefix)
    snapshot = kv_cache.take(cache)
    for text in (TEXT, OTHER, TEXT):
        ids = vlm.template('', 2).question(text)
        warm, warm_tokens = continued(vlm, cache, ids, start)
        kv_cache.restore(cache, snapshot)
        cold, cold_tokens = continued(vlm, *_cold(vlm, prefix, ids))
        assert np.array_equal(warm, cold) and warm_tokens == cold_tokens


def _cold(vlm, prefix, ids):
    cache, start = prefilled(vlm, prefix)
    return cache, ids, start


def test_a_branch_that_is_only_cut_back_is_not_the_cold_run(vlm, prefix):
    ids = vlm.template('', 2).question(OTHER)
    cache, start = prefilled(vlm, prefix)
    cold, _ = continued(vlm, cache, ids, start)
    bound = noise.bound(prefix[2], lambda embeddings: continued(vlm, *_cold(vlm, (*prefix[:2], embeddings), ids))[0])
    for entry in cache:
        if isinstance(entry, KVCache):
            entry.trim(entry.offset - len(prefix[0]))
    cut, _ = continued(vlm, cache, ids, start)
    assert noise.apart(cut, cold) > WIDE * bound


@pytest.mark.parametrize('recurrent_dir', ['qwen3_5'], indirect=True)
def test_fifty_follow_ups_of_one_to_three_thousand_tokens_equal_cold(vlm, prefix):
    lengths = [*range(1, 41), 63, 65, 128, 300, 511, 512, 513, 1000, 2049, LONGEST]
    texts = [words(vlm, LONGEST, seed) for seed in (1, 2)]
    colds = [_cold_logits(vlm, prefix, text) for text in texts]
    beginning = texts[0][: LONGEST // 5]  # more than one call
    bound = noise.bound(
        [prefix[2], vlm.family.embed(beginning)],
        lambda given: _cold_logits(vlm, (*prefix[:2], given[0]), beginning, given[1]),
    )

    cache, start = prefilled(vlm, prefix)
    snapshot, worst = kv_cache.take(cache), 0.0
    for length in np.random.default_rng(1).permutation(lengths).tolist():
        logits, tokens = continued(vlm, cache, texts[length % 2][:length], start, tokens=2)
        kv_cache.restore(cache, snapshot)
        cold = colds[length % 2][length - 1]
        worst = max(worst, noise.apart(logits, cold))
        assert tokens[:1] == [token for token in [cold.argmax()] if token not in vlm.stop_ids]
    assert len(lengths) == 50 and worst < bound


def _cold_logits(vlm, prefix, text, embedded=None):
    """Pictures and a text as one prompt, its chunks cut from the start: the logits behind each of the text's tokens."""
    ids, positions, embeddings = prefix
    positions = np.concatenate([positions, vlm.family.text_positions(positions.max() + 1, len(text))], axis=1)
    embeddings = mx.concatenate([embeddings, vlm.family.embed(text) if embedded is None else embedded], axis=1)
    assert positions.shape[1] < CONTEXT
    return run(vlm, ids + text, positions, embeddings, vlm.new_cache(), PREFILL_CHUNK)[len(ids) :]


def test_sessions_and_text_only_turns_on_one_model_do_not_disturb_each_other(vlm):
    frames = picture(1, camera='front'), picture(2, camera='rear', size=(320, 960))
    questions = [Question(TEXT, max_tokens=6), Question(OTHER, max_tokens=6), Question(OTHER, ('yes', 'no'))]
    alone = []
    for frame in frames:
        session = SceneSession(vlm, Config(), camera=frame.camera)
        session.observe(frame)
        alone.append([session.ask(question, now_ns=0) for question in questions])

    sessions = [SceneSession(vlm, Config(), camera=frame.camera) for frame in frames]
    for session, frame in zip(sessions, frames):
        session.observe(frame)
        _text_only_turn(vlm)
    for number, question in enumerate(questions):
        for session, expected in zip(sessions, alone):
            answer = session.ask(question, now_ns=0)
            _text_only_turn(vlm)
            assert answer.status == Status.OK and answer.token_ids == expected[number].token_ids
            assert answer.choice_scores == expected[number].choice_scores
            assert answer.tokens_reused > 0
    assert alone[0][0].token_ids != alone[1][0].token_ids  # the pictures matter


def _text_only_turn(vlm):
    """What any other user of the model may do: a chat without pictures, which keeps its positions in the model."""
    model = vlm._model
    mx.eval(model(mx.array([words(vlm, 30)]), cache=vlm.new_cache()).logits)
    assert model.language_model._rope_deltas is not None


def test_a_refresh_of_the_live_picture_starts_from_the_state_before_it(vlm):
    frames = [picture(seed, stamp_s=seed) for seed in (1, 2, 3)]
    session = SceneSession(vlm, Config())
    refreshes = [session.observe(frame) for frame in frames]
    assert refreshes[0].level == Level.FULL
    choice = Question(OTHER, ('yes', 'no', 'red'))
    for question in (Question(TEXT, max_tokens=6), choice):
        warm, cold = (ask(question, now_ns=0) for ask in (session.ask, session.ask_cold))
        assert warm.status == Status.OK and warm.token_ids == cold.token_ids
        assert cold.tokens_reused == 0 < warm.tokens_reused
    assert choices_apart(warm, cold) < choice_bound(session, choice)


def test_one_call_equals_many_behind_a_restored_state(vlm, prefix):
    cache, start = prefilled(vlm, prefix)
    snapshot = kv_cache.take(cache)
    ids = words(vlm, 90)
    positions, embeddings = vlm.family.text_positions(start, len(ids)), vlm.family.embed(ids)

    def logits(embeddings, limit=512):
        kv_cache.restore(cache, snapshot)
        return run(vlm, ids, positions, embeddings, cache, limit)

    expected, bound = logits(embeddings), noise.bound(embeddings, logits)
    for limit in (2, 64, 89):  # less than the convolution's window; the library's own block; one token left
        assert noise.apart(logits(embeddings, limit), expected) < bound


# One pass: blocks of tokens as a tree. In turn: each block behind the one it follows, in calls of its own.


def encoded(vlm, seed):
    """A picture with features for a state."""
    return EncodedFrame.see(vlm, picture(seed, stamp_s=seed))


def built(vlm, *frames, later=False):
    """A state of these pictures, the last of which may wait."""
    return states.build(vlm, partial(vlm.template, ''), frames, later=later)


def some_tree(vlm, rng):
    """One to eight blocks of one to 90 tokens, each behind the cache's end or any block before it."""
    lengths = rng.choice([1, 2, 3, 4, 17, 63, 64, 65, 90], size=rng.integers(1, 9)).tolist()
    return [
        Block(words(vlm, length, seed=int(rng.integers(1000))), int(rng.integers(-1, number)), bool(rng.integers(2)))
        for number, length in enumerate(lengths)
    ]


def question_and_choices(vlm, text, *choices):
    """A question's block and those of its choices."""
    template = vlm.template('', 2)
    return [Block(template.question(text)), *(Block(choice, 0, is_answer=True) for choice in template.choices(choices))]


def in_turn(vlm, state, blocks, embedded=None):
    """What a pass returns of blocks behind a state. embedded: of each block; None: of its tokens."""
    logits = []
    for number in range(len(blocks)):
        start, last = state.next_position, None
        for ancestor in line_to(blocks, number):
            ids = blocks[ancestor].ids
            given = embedded[ancestor] if embedded else None
            keep = len(ids) if blocks[ancestor].is_answer else 1
            last = vlm.run(state.cache, ids, vlm.family.text_positions(start, len(ids)), embeddings=given, keep=keep)
            start += len(ids)
        state.restore()
        logits.append(last)
    return logits


def line_to(blocks, number):
    """The numbers of the blocks from the cache's end to this one."""
    parent = blocks[number].parent
    return [*(line_to(blocks, parent) if parent >= 0 else []), number]


def arrays_of(cache):
    """Recurrent states, and the rows of attention layers."""
    return [
        np.array(array)
        for part in cache
        for array in (
            part.cache if isinstance(part, ArraysCache) else (kept[..., : part.offset, :] for kept in part.state)
        )
    ]


@pytest.mark.parametrize('seed', range(1))
def test_a_tree_of_blocks_in_one_pass_equals_its_blocks_in_turn(vlm, seed):
    rng = np.random.default_rng(seed)
    blocks, state = some_tree(vlm, rng), built(vlm, encoded(vlm, 1))
    passes = vlm.meter.done.passes
    together = state.read(blocks).logits
    assert vlm.meter.done.passes == passes + 1
    state.restore()
    given = [vlm.family.embed(block.ids) for block in blocks]
    compute = partial(in_turn, vlm, state, blocks)
    assert noise.apart(together, compute(given)) < noise.bound(given, compute)


def test_a_slot_that_waits_a_question_and_its_choices_are_one_pass(vlm):
    blocks = question_and_choices(vlm, TEXT, 'yes', 'no', 'red square', 'a blue circle')
    frames = [encoded(vlm, seed) for seed in (1, 2)]

    def compute(features):
        state = built(vlm, frames[0], replace(frames[1], features=features))
        slot = arrays_of(state.cache)
        return [*slot, *in_turn(vlm, state, blocks)]

    waiting = built(vlm, *frames, later=True)
    passes = vlm.meter.done.passes
    logits = waiting.read(blocks).logits
    assert vlm.meter.done.passes == passes + 1
    together = [*arrays_of(waiting.cache), *logits]  # the cache ends at the snapshot: nothing stays
    assert noise.apart(together, compute(frames[1].features)) < noise.bound(frames[1].features, compute)


def test_a_snapshot_from_a_pass_is_restored_bit_for_bit(vlm):
    question, *choices = question_and_choices(vlm, TEXT, 'yes', 'no it is')
    state = built(vlm, encoded(vlm, 1), encoded(vlm, 2), later=True)
    state.read([question, *choices])
    expected = arrays_of(state.cache)
    for _ in range(2):
        (logits,) = state.read([question], stay=1).logits
        vlm.decode(state.cache, logits, state.next_position + len(question.ids), 5)
        state.read([question, *choices])
        state.restore()
        assert all(map(np.array_equal, arrays_of(state.cache), expected))


def test_decoding_behind_a_question_that_stayed_equals_a_cold_run(vlm, prefix):
    state = built(vlm, encoded(vlm, 1), encoded(vlm, 2), later=True)
    ids = state.template.question(TEXT)
    (logits,) = state.read([Block(ids)], stay=1).logits
    tokens = vlm.decode(state.cache, logits, state.next_position + len(ids), 8)
    cold = built(vlm, *state.frames)
    _, expected = continued(vlm, cold.cache, ids, cold.next_position, 8)
    assert tokens == expected and len(tokens) > 1


@pytest.mark.parametrize('cuts', [(32, 27, 20, 19, 1, 0), (31,), (2,)])
def test_a_pass_can_be_cut_behind_any_token(vlm, cuts):
    line = words(vlm, 32, 1)
    blocks = [Block(line[:20]), Block(line[20:], 0), Block(words(vlm, 5, 2), 0), Block(words(vlm, 70, 3))]
    behind, frames = words(vlm, 3, 4), [encoded(vlm, seed) for seed in (1, 2)]

    def logits_behind(state, cut):
        return vlm.read(state.cache, behind, state.next_position + cut)

    def compute(features):
        state, logits = built(vlm, frames[0], replace(frames[1], features=features)), []
        for cut in cuts:
            if cut:
                vlm.read(state.cache, line[:cut], state.next_position)
            logits.append(logits_behind(state, cut))
            state.restore()
        return logits

    state, logits = built(vlm, *frames, later=True), []
    reading = state.read(blocks)
    for cut in cuts:  # from the end: what is added overwrites rows
        reading.keep(cut)
        logits.append(logits_behind(state, cut))
    assert noise.apart(logits, compute(frames[1].features)) < noise.bound(frames[1].features, compute)


def test_questions_that_share_a_pass_do_not_look_at_each_other(vlm):
    state = built(vlm, encoded(vlm, 1), encoded(vlm, 2))
    mine = question_and_choices(vlm, TEXT, 'yes', 'red square')
    logits = []
    for seed in (1, 2):
        others = [Block(words(vlm, 40, seed)), Block(words(vlm, 7, seed), 3), Block(words(vlm, 2, seed), 3)]
        logits.append(state.read([*mine, *others]).logits)
        state.restore()
    given = [vlm.family.embed(block.ids) for block in mine]
    compute = partial(in_turn, vlm, state, mine)
    bound = noise.bound(given, compute)
    assert noise.apart(logits[0][:3], logits[1][:3]) < bound and noise.apart(logits[0][:3], compute(given)) < bound
    assert noise.apart(logits[0][3:], logits[1][3:]) > WIDE * bound  # the others are others


def test_a_choice_about_a_new_picture_is_one_pass_of_a_session(vlm):
    session = SceneSession(vlm, Config(upkeep_share=0.0, history_frames=0))
    question = Question(OTHER, ('yes', 'no', 'red'))
    session.observe(picture(1, stamp_s=1))
    session.ask(question, now_ns=0)
    passes = vlm.meter.done.passes
    session.look(picture(2, stamp_s=2))
    warm = session.ask(question, now_ns=2 * 10**9)
    assert warm.status == Status.OK and vlm.meter.done.passes == passes + 1
    cold = session.ask_cold(question, now_ns=2 * 10**9)
    assert choices_apart(warm, cold) < choice_bound(session, question)
