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

"""The Gemma 4 family against mlx-vlm's own cold pass, and against plain attention with a mask written out."""

import random
from types import SimpleNamespace

import mlx.core as mx
import mlx_vlm
import numpy as np
import pytest
from mlx_vlm.models.cache import KVCache, RotatingKVCache
from mlx_vlm.prompt_utils import apply_chat_template
from PIL import Image
from rounding import WIDE, choice_bound, choices_apart
from tiny_gemma4 import write_tiny_gemma4
from tiny_model import WORDS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError, ModelError
from vlm_reuse_node.model import kv_cache, noise
from vlm_reuse_node.model.families.base import Grid
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.model.noise import apart
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXT = 'how many objects are there , and what is the color of the square on the left ?'
EVERYTHING = 1_000_000
MODELS = {
    'dense, window below a picture': {'shape': 'dense', 'window': 7},
    'experts': {'shape': 'experts'},
    'layer inputs': {'shape': 'layer_inputs'},
    'layer inputs, two-way': {'shape': 'layer_inputs', 'window': 7, 'use_bidirectional_attention': 'vision'},
}


@pytest.fixture(scope='module', params=MODELS)
def model_dir(request, tmp_path_factory):
    """A tiny Gemma 4 of every shape."""
    return write_tiny_gemma4(tmp_path_factory.mktemp('models') / 'gemma4', **MODELS[request.param])


@pytest.fixture(scope='module')
def vlm(model_dir):
    """The model as we load it."""
    return load(str(model_dir))


@pytest.fixture
def model(vlm):
    """The model below, as mlx-vlm made it."""
    return vlm._model


def chat(vlm, frames, text=TEXT):
    """Tokens of a chat as its template gives them, and what mlx-vlm's processor makes of it."""
    prompt = apply_chat_template(
        vlm._processor, vlm._model.config, [{'role': 'user', 'content': text}], num_images=len(frames)
    )
    batch = vlm._processor(text=[prompt], images=[Image.fromarray(frame.rgb) for frame in frames])
    return list(vlm._processor.tokenizer(prompt)['input_ids']), batch


def words(vlm, count, seed=0):
    """Tokens of plain text."""
    first = vlm._processor.tokenizer.convert_tokens_to_ids(WORDS[0])
    return random.Random(seed).choices(range(first, first + len(WORDS)), k=count)


def prompt(vlm, *parts):
    """A prompt of runs of words (how many) and pictures (frames), with its embeddings and positions."""
    ids, grids, features = [], [], []
    for number, part in enumerate(parts):
        if isinstance(part, int):
            ids += words(vlm, part, seed=number)
        else:
            pixels, grid = vlm.family.prepare(part.rgb)
            grids.append(grid)
            features.append(vlm.family.encode(pixels, grid))
            ids.append(vlm._model.config.image_token_id)
    ids = vlm.family.expand(ids, grids)
    return SimpleNamespace(
        ids=ids,
        positions=vlm.family.positions(ids, grids),
        embeddings=vlm.family.embed(ids, mx.concatenate(features) if features else None),
    )


def joined(vlm, first, second):
    """One prompt behind another."""
    return SimpleNamespace(
        ids=first.ids + second.ids,
        embeddings=mx.concatenate([first.embeddings, second.embeddings], axis=1),
        positions=vlm.family.text_positions(0, len(first.ids) + len(second.ids)),
    )


def run(vlm, cache, prompt, first=0, last=None, limit=512, keep=EVERYTHING):
    """Run tokens of a prompt behind the cache in calls of `limit`: logits of all of them, mx (tokens, vocabulary)."""
    logits, last = [], len(prompt.ids) if last is None else last
    for part in vlm.family.chunks(prompt.ids[first:last], limit):
        part = slice(part.start + first, part.stop + first)
        kept = range(-min(keep, part.stop - part.start), 0)
        logits.append(
            vlm.family.forward(prompt.ids[part], prompt.embeddings[:, part], prompt.positions[:, part], cache, kept)
        )
        mx.eval(logits)
    return mx.concatenate(logits)


def new_cache(vlm):
    return kv_cache.new_cache(vlm._model.language_model)


def plain_attention(vlm, prompt, two_way=True):
    """Logits of all tokens by the model's layers without any cache, each with the whole mask written out."""
    model, text, length = vlm._model, vlm._model.language_model.model, len(prompt.ids)
    two_way = two_way and model.config.text_config.use_bidirectional_attention == 'vision'
    picture_of, ends = np.full(length, -1), vlm.family.slots(prompt.ids)
    for number, (before, end) in enumerate(zip([0, *ends], ends)):
        inside = [i for i in range(before, end) if prompt.ids[i] == model.config.image_token_id]
        picture_of[inside] = number
    masks = {kind: np.zeros((length, length), bool) for kind in ('full_attention', 'sliding_attention')}
    for kind, mask in masks.items():
        reach = length if kind == 'full_attention' else model.config.text_config.sliding_window
        for query in range(length):
            mask[query, max(0, query - reach + 1) : query + 1] = True
            if two_way and picture_of[query] >= 0:
                mask[query, picture_of == picture_of[query]] = True
    inputs = None
    if text.hidden_size_per_layer_input:
        tokens = [0 if token == model.config.image_token_id else token for token in prompt.ids]
        inputs = text.project_per_layer_inputs(prompt.embeddings, text.get_per_layer_inputs(mx.array([tokens])))
    hidden, seen = prompt.embeddings, []
    for index, layer in enumerate(text.layers):
        source = text.previous_kvs[index]
        hidden, pair, _ = layer(
            hidden,
            mx.array(masks[layer.layer_type]),
            None,
            per_layer_input=None if inputs is None else inputs[:, :, index],
            shared_kv=seen[source] if source < index else None,
            offset=0,
        )
        seen.append(pair)
    return model.language_model.logits_from_hidden(text.norm(hidden))[0]


def digest(cache):
    """What every layer holds, oldest first where it is a ring, and where it ends."""
    return [
        (entry.offset, np.array(rows[..., : entry.offset, :]).tobytes())
        for entry in cache
        for rows in (entry.keys, entry.values)
    ]


def same(warm, cold):
    return warm.status == cold.status == Status.OK and warm.token_ids == cold.token_ids


def bound_of(vlm, prompt):
    """How far rounding may move the logits of a prompt's tokens."""

    def logits(embeddings):
        return run(vlm, new_cache(vlm), SimpleNamespace(**vars(prompt) | {'embeddings': embeddings}))

    return noise.bound(prompt.embeddings, logits)


# What the model sees of a picture.


@pytest.mark.parametrize(
    'sizes', [[(480, 640)], [(640, 480)], [(400, 400)], [(40, 1200), (480, 640)], [(480, 640), (480, 640), (1200, 40)]]
)
def test_tokens_equal_those_of_the_processor(vlm, sizes):
    frames = [picture(seed, size=size) for seed, size in enumerate(sizes)]
    ids, batch = chat(vlm, frames)
    grids = [vlm.family.prepare(frame.rgb)[1] for frame in frames]
    expanded = vlm.family.expand(ids, grids)
    assert expanded == batch['input_ids'][0].tolist()
    assert np.array_equal(vlm.family.positions(expanded, grids), [range(len(expanded))])


def test_a_slot_ends_behind_the_picture_expanded_or_not(vlm):
    frames = [picture(1), picture(2, size=(640, 480))]
    ids, batch = chat(vlm, frames)
    image, end = vlm._model.config.image_token_id, vlm._model.config.eoi_token_id
    assert [ids[slot - 1] for slot in vlm.family.slots(ids)] == [image, image]
    expanded = batch['input_ids'][0].tolist()
    assert [expanded[slot - 1] for slot in vlm.family.slots(expanded)] == [end, end]
    grids = [vlm.family.prepare(frame.rgb)[1] for frame in frames]
    for plain, full in zip(vlm.family.slots(ids), vlm.family.slots(expanded)):
        assert vlm.family.expand(ids[:plain], grids) == expanded[:full]
    assert vlm.family.slots(words(vlm, 5)) == []


@pytest.mark.parametrize('size', [(480, 640), (640, 480), (400, 400), (100, 1200), (1200, 40), (1, 300), (30, 30)])
def test_padding_is_no_cell(vlm, size):
    frame = picture(1, size=(max(size[0], 40), max(size[1], 40)))
    pixels, grid = vlm.family.prepare(frame.rgb[: size[0], : size[1]])
    assert pixels.shape == (1, 3, grid.rows * vlm.family.cell_px, grid.columns * vlm.family.cell_px)
    assert vlm.family.encode(pixels, grid).shape == (grid.cells, 48) and 1 <= grid.cells <= 16


def test_cells_are_the_pictures_blocks_row_by_row(vlm, model, monkeypatch):
    mixing = type(model.vision_tower.encoder)
    monkeypatch.setattr(mixing, '__call__', lambda encoder, hidden, positions, mask: hidden)
    pixels, grid = vlm.family.prepare(picture(1).rgb)
    side, before = vlm.family.cell_px, vlm.family.encode(pixels, grid)
    bound = noise.bound(pixels, lambda values: vlm.family.encode(values, grid))
    assert grid == Grid(3, 4) and side == 12
    for row in range(grid.rows):
        for column in range(grid.columns):
            other = np.array(pixels)
            other[..., row * side : (row + 1) * side, column * side : (column + 1) * side] *= 0.5
            moved = mx.abs(vlm.family.encode(mx.array(other), grid) - before).max(axis=1) > bound
            assert np.flatnonzero(moved).tolist() == [row * grid.columns + column]


def test_a_picture_without_pixels_is_refused(vlm):
    for shape in ((0, 40, 3), (40, 0, 3)):
        with pytest.raises(ImageError, match='Expected sides of at least one pixel') as error:
            vlm.family.prepare(np.zeros(shape, np.uint8))
        assert error.value.cause == 'size'


def test_processor_and_model_that_disagree_on_cells_are_refused(vlm, monkeypatch):
    monkeypatch.setattr(vlm.family, 'cell_px', 2 * vlm.family.cell_px)
    with pytest.raises(ModelError, match='counts 12 tokens.*pooling_kernel_size'):
        vlm.family.prepare(picture(1).rgb)


def test_text_is_scaled_and_features_are_not(vlm, model):
    frame = picture(1)
    ids, batch = chat(vlm, [frame])
    pixels, grid = vlm.family.prepare(frame.rgb)
    features = vlm.family.encode(pixels, grid)
    embeddings = vlm.family.embed(vlm.family.expand(ids, [grid]), features)
    expected = model.get_input_embeddings(batch['input_ids'], batch['pixel_values']).inputs_embeds
    assert mx.array_equal(embeddings, expected)
    cells = np.flatnonzero(batch['input_ids'][0] == model.config.image_token_id)
    assert mx.array_equal(embeddings[0, mx.array(cells)], features)


# One call, or many: the same logits.


def test_a_cold_pass_equals_mlx_vlms_and_plain_attention(vlm, model):
    frames = [picture(1), picture(2, size=(640, 480))]
    ids, batch = chat(vlm, frames)
    pixels, grids = zip(*(vlm.family.prepare(frame.rgb) for frame in frames))
    ids = vlm.family.expand(ids, grids)

    def seen(pixels):
        return SimpleNamespace(
            ids=ids,
            positions=vlm.family.text_positions(0, len(ids)),
            embeddings=vlm.family.embed(ids, mx.concatenate(list(map(vlm.family.encode, pixels, grids)))),
        )

    theirs = model(batch['input_ids'], batch['pixel_values'], mm_token_type_ids=batch['mm_token_type_ids']).logits[0]
    logits = run(vlm, new_cache(vlm), seen(pixels))
    assert apart(logits, theirs) < noise.bound(list(pixels), lambda values: run(vlm, new_cache(vlm), seen(values)))
    assert apart(logits, plain_attention(vlm, seen(pixels))) < bound_of(vlm, seen(pixels))
    assert logits.dtype == mx.float32 and mx.abs(logits).max() < 5.0 < mx.abs(mx.arctanh(logits / 5.0) * 5.0).max()


@pytest.mark.parametrize('seed', range(6))
def test_any_cut_behind_any_ring_equals_plain_attention(vlm, seed):
    draw = random.Random(seed)
    whole = prompt(
        vlm,
        draw.randint(1, 40),
        picture(seed),
        draw.randint(0, 20),
        picture(seed + 1, size=(640, 480)),
        draw.randint(1, 40),
    )
    expected, bound = plain_attention(vlm, whole), bound_of(vlm, whole)
    for limit in (draw.randint(1, 5), draw.randint(6, 15), draw.randint(16, 40)):
        assert apart(run(vlm, new_cache(vlm), whole, limit=limit), expected) < bound


def test_the_reference_tells_a_one_way_mask_and_a_short_window_apart(vlm, model, monkeypatch):
    whole = prompt(vlm, 20, picture(1), 20)
    expected, bound = plain_attention(vlm, whole), bound_of(vlm, whole)
    if model.config.text_config.use_bidirectional_attention == 'vision':
        assert apart(plain_attention(vlm, whole, two_way=False), expected) > WIDE * bound
    monkeypatch.setattr(model.config.text_config, 'sliding_window', model.config.text_config.sliding_window - 1)
    assert apart(plain_attention(vlm, whole), expected) > WIDE * bound


def test_no_picture_is_cut_and_calls_are_no_longer_than_needed(vlm, model):
    two_way = model.config.text_config.use_bidirectional_attention == 'vision'
    image = model.config.image_token_id
    whole = prompt(vlm, 9, picture(1), picture(2), 5, picture(3), 1).ids
    for limit in range(1, len(whole) + 2):
        parts = vlm.family.chunks(whole, limit)
        assert [token for part in parts for token in whole[part]] == whole
        for part, later in zip(parts, [*parts[1:], None]):
            content = whole[part]
            assert 0 < len(content) <= limit or two_way and set(content) == {image}
            if two_way and later:
                assert whole[later][0] != image or content[-1] != image
    assert vlm.family.chunks([], 5) == []


@pytest.mark.parametrize('count', [2, 17, 300, 1100])
def test_a_warm_suffix_equals_a_cold_run(vlm, count):
    whole = prompt(vlm, 30, picture(1), count)
    prefix = len(whole.ids) - count
    cache = new_cache(vlm)
    run(vlm, cache, whole, last=prefix)
    warm, bound = run(vlm, cache, whole, first=prefix), bound_of(vlm, whole)
    assert apart(warm, run(vlm, new_cache(vlm), whole, limit=301)[prefix:]) < bound
    if count <= 300:
        assert apart(warm, plain_attention(vlm, whole)[prefix:]) < bound


def test_tokens_one_by_one_equal_plain_attention(vlm):
    whole = prompt(vlm, 3, picture(1), 60)
    expected, cache, bound = plain_attention(vlm, whole), new_cache(vlm), bound_of(vlm, whole)
    done = len(whole.ids) - 60
    run(vlm, cache, whole, last=done)
    for call in (1, 1, 1, 9, *[1] * 20, 2, 1, 18, 1, 6):
        assert apart(run(vlm, cache, whole, first=done, last=done + call), expected[done : done + call]) < bound
        done += call
    assert done == len(whole.ids)


@pytest.mark.parametrize('keep', [1, 7, 19, 400])
def test_the_last_tokens_logits_do_not_depend_on_how_many_are_kept(vlm, keep):
    whole = prompt(vlm, 30, picture(1), 20)
    prefix, caches = len(whole.ids) - 20, (new_cache(vlm), new_cache(vlm))
    for cache in caches:
        run(vlm, cache, whole, last=prefix, keep=1)
    logits, rest = run(vlm, caches[0], whole, first=prefix, keep=keep), prompt(vlm, 30, picture(1), 20, 3)
    bound = bound_of(vlm, rest)
    assert logits.shape[0] == min(keep, 20)
    assert apart(logits, run(vlm, caches[1], whole, first=prefix)[-keep:]) < bound
    after = [run(vlm, cache, rest, first=len(whole.ids)) for cache in caches]
    assert apart(*after) < bound


# Positions and caches.


def test_positions_of_two_interleaved_prompts_are_those_of_each_alone(vlm, model, monkeypatch):
    logged = []
    for kind in {type(layer.self_attn.rope) for layer in model.language_model.layers}:

        def spy(rope, x, offset=0, plain=kind.__call__):
            logged.append((int(mx.array(offset).reshape(-1)[0]), x.shape[-2]))
            return plain(rope, x, offset=offset)

        monkeypatch.setattr(kind, '__call__', spy)
    prompts = [prompt(vlm, 30, picture(1), 25), prompt(vlm, 4, picture(2, size=(640, 480)), 25)]
    caches, done = [new_cache(vlm), new_cache(vlm)], [0, 0]
    alone, bounds = ([of(vlm, each) for each in prompts] for of in (plain_attention, bound_of))
    for turn in range(12):
        which = turn % 2
        first, last = done[which], len(prompts[which].ids) - 25 + 5 * (turn // 2)
        logged.clear()
        logits = run(vlm, caches[which], prompts[which], first=first, last=last)
        assert set(logged) == {(first, last - first)}
        assert apart(logits, alone[which][first:last]) < bounds[which]
        done[which] = last


def test_positions_that_do_not_follow_the_cache_are_refused(vlm):
    whole = prompt(vlm, 12)
    cache = new_cache(vlm)
    run(vlm, cache, whole, last=6)
    for positions in (vlm.family.text_positions(5, 3), vlm.family.text_positions(0, 3), np.array([[6, 7, 9]])):
        with pytest.raises(ModelError, match=r'The caches hold \[6\] tokens'):
            vlm.family.forward(whole.ids[:3], whole.embeddings[:, :3], positions, cache)
    cache[0].trim(1)
    with pytest.raises(ModelError, match=r'The caches hold \[5, 6\] tokens'):
        vlm.family.forward(whole.ids[:3], whole.embeddings[:, :3], vlm.family.text_positions(6, 3), cache)


def test_layers_that_share_keys_have_no_cache_of_their_own(vlm, model):
    shared = model.config.text_config.num_kv_shared_layers
    kinds = [RotatingKVCache, KVCache] * 2
    assert [type(entry) for entry in new_cache(vlm)] == kinds[: 4 - shared]
    cache = new_cache(vlm)
    run(vlm, cache, prompt(vlm, 40))
    assert [entry.offset for entry in cache] == [40] * (4 - shared)


# Snapshots.


def test_fifty_follow_ups_on_three_windows_equal_cold_runs_and_leave_the_snapshot(vlm):
    prefix = prompt(vlm, 40, picture(1))
    assert len(prefix.ids) >= 3 * 16
    cache, draw = new_cache(vlm), random.Random(0)
    run(vlm, cache, prefix)
    snapshot, before = kv_cache.take(cache), digest(cache)
    bound = bound_of(vlm, joined(vlm, prefix, prompt(vlm, 170)))  # all that is asked below is a beginning of it
    for turn in range(50):
        question, answer = 1 + 3 * turn if turn % 5 else 1, draw.randint(1, 20)
        whole = joined(vlm, prefix, prompt(vlm, question + answer))
        warm, last = [], len(prefix.ids)
        for call in (question, *[1] * answer):  # an answer is decoded token by token
            first, last = last, last + call
            warm.append(run(vlm, cache, whole, first, last))
        cold = run(vlm, new_cache(vlm), whole, limit=64)[len(prefix.ids) :]
        assert apart(mx.concatenate(warm), cold) < bound
        kv_cache.restore(cache, snapshot)
        assert digest(cache) == before


@pytest.mark.parametrize('length', [1, 6, 7, 8, 15, 16, 17, 33])
def test_a_prefix_of_any_length_around_the_window_restores(vlm, length):
    whole, cache = prompt(vlm, length, 30), new_cache(vlm)
    run(vlm, cache, whole, last=length)
    snapshot, expected, bound = kv_cache.take(cache), plain_attention(vlm, whole)[length:], bound_of(vlm, whole)
    for limit in (30, 1, 7):
        assert apart(run(vlm, cache, whole, first=length, limit=limit), expected) < bound
        kv_cache.restore(cache, snapshot)


# The whole engine.


@pytest.fixture
def session(vlm):
    session = SceneSession(vlm, Config(system_prompt=' '.join(WORDS)))
    session.observe(picture(1))
    return session


@pytest.mark.parametrize('count', [1, 2, 40, 600])
def test_a_warm_answer_equals_the_cold_one(session, count):
    session.ask(Question('is it red ?', max_tokens=30), now_ns=0)
    text = ' '.join(random.Random(count).choices(WORDS, k=count))
    choice = Question(text, ('red', 'blue circle', 'no'))
    for question in (Question(text, max_tokens=20), choice):
        warm, cold = session.ask(question, now_ns=0), session.ask_cold(question, now_ns=0)
        assert same(warm, cold) and warm.tokens_reused >= 3 * 16 and cold.tokens_reused == 0
    assert choices_apart(warm, cold) < choice_bound(session, choice)


def test_a_new_picture_is_seen(session):
    question = Question(TEXT, max_tokens=20)
    old = session.ask(question, now_ns=0)
    session.observe(picture(2, stamp_s=1))
    new = session.ask(question, now_ns=0)
    assert same(new, session.ask_cold(question, now_ns=0)) and new.token_ids != old.token_ids


def test_two_sessions_on_one_model_do_not_disturb_each_other(vlm):
    alone = {}
    for seed in (1, 2):
        session = SceneSession(vlm, Config(system_prompt='see the table .'), f'camera{seed}')
        session.observe(picture(seed, size=(480, 640) if seed == 1 else (640, 480)))
        alone[seed] = session, [session.ask(Question(text, max_tokens=20), now_ns=0) for text in (TEXT, 'is it red ?')]
    for index, text in enumerate((TEXT, 'is it red ?')):
        for session, expected in alone.values():
            assert same(session.ask(Question(text, max_tokens=20), now_ns=0), expected[index])


@pytest.mark.parametrize('seed', [1, 2])
def test_the_cold_answer_equals_mlx_vlm_generate(vlm, model, seed):
    frame = picture(seed)
    session = SceneSession(vlm, Config())
    session.observe(frame)
    ours = session.ask_cold(Question(TEXT, max_tokens=24), now_ns=0)
    text = apply_chat_template(vlm._processor, model.config, [{'role': 'user', 'content': TEXT}], num_images=1)
    theirs = mlx_vlm.generate(
        model, vlm._processor, text, image=[Image.fromarray(frame.rgb)], max_tokens=24, temperature=0.0
    )
    written = [token for token in theirs.token_ids if token not in vlm.stop_ids]
    if model.config.image_token_id in written:  # of random weights; what a model writes is no picture
        written = written[: written.index(model.config.image_token_id)]
    assert len(written) > 3 and list(ours.token_ids[: len(written)]) == written
