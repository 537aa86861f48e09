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

"""The generic family against mlx-vlm itself, on four model types that differ in what a picture becomes."""

import math
from functools import partial
from importlib import import_module

import mlx.core as mx
import mlx.nn as nn
import mlx_vlm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_vlm.models import base as upstream_base
from mlx_vlm.models.cache import RotatingKVCache, create_causal_mask
from mlx_vlm.prompt_utils import apply_chat_template
from PIL import Image
from rounding import WIDE, choices_apart
from tiny_generic import TYPES, write_tiny_generic
from tiny_model import picture, write_tiny_model

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError, ModelError
from vlm_reuse_node.model import kv_cache, loading, noise
from vlm_reuse_node.model import vlm as vlms
from vlm_reuse_node.model.families import generic, probe
from vlm_reuse_node.model.families.base import family_for
from vlm_reuse_node.model.families.picture_tokens import TokenSpan
from vlm_reuse_node.model.families.placed_rope import place_ropes
from vlm_reuse_node.model.pass_cache import stand_ins
from vlm_reuse_node.model.token_tree import Block, TokenTree
from vlm_reuse_node.scene.change import ChangeDetector
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXT = 'how many objects are there , and what is the color of the square on the left ?'
# The others have recurrent layers.
BRANCHING = ('llava', 'idefics3', 'pixtral')
CHOICE = Question(TEXT, choices=('red', 'blue circle', 'yes it is'))
SIZES = [[(480, 640)], [(480, 640), (640, 480)], [(320, 960), (480, 480)]]


@pytest.fixture(scope='module', params=TYPES)
def model_dir(request, tmp_path_factory):
    """A tiny model of each type."""
    return write_tiny_generic(tmp_path_factory.mktemp('models') / request.param, request.param)


@pytest.fixture(scope='module')
def vlm(model_dir):
    """The model as we load it."""
    return loading.load(str(model_dir))


@pytest.fixture(scope='module')
def upstream(model_dir):
    """Model and processor as a user of mlx-vlm has them, loaded apart from ours."""
    return mlx_vlm.load(str(model_dir))


def frames(sizes):
    return [picture(seed, size=size) for seed, size in enumerate(sizes, start=1)]


def batch(upstream, text, pictures):
    """What the processor makes of a chat: tokens, and everything else."""
    model, processor = upstream
    prompt = apply_chat_template(processor, model.config, text, num_images=len(pictures))
    given = upstream_base.to_mlx(processor(text=[prompt], images=[Image.fromarray(frame.rgb) for frame in pictures]))
    return given.pop('input_ids'), {name: value for name, value in given.items() if name != 'attention_mask'}


def prepared(vlm, pictures):
    """What the processor makes of each picture, and their grids."""
    return zip(*(vlm.family.prepare(frame.rgb) for frame in pictures))


def ours(vlm, text, pixels, grids):
    """Tokens, positions and embeddings of a whole chat, the contract's way."""
    template = vlm.template('', len(grids))
    ids = vlm.family.expand(template.prefix + template.question(text), grids)
    embeddings = vlm.family.embed(ids, mx.concatenate(list(map(vlm.family.encode, pixels, grids))))
    return ids, vlm.family.positions(ids, grids), embeddings


def all_logits(vlm, ids, positions, embeddings):
    """Logits of all tokens of a chat, in one run."""
    return vlm.run(vlm.new_cache(), ids, positions, embeddings=embeddings, keep=len(ids))


def cold(vlm, text, pictures):
    """Logits of all tokens of a chat, and how far rounding may move them."""
    pixels, grids = prepared(vlm, pictures)

    def compute(pixels):
        return all_logits(vlm, *ours(vlm, text, pixels, grids))

    return compute(pixels), noise.bound(list(pixels), compute)


def own_scores(vlm, pictures, question):
    """Log-probabilities of choices, each in a call of its own on no cache; and how far rounding may move them."""
    pixels, grids = prepared(vlm, pictures)
    ids, _, embeddings = ours(vlm, question.text, pixels, grids)
    choices = vlm.template('', len(pictures)).choices(question.choices)

    def compute(embeddings):
        found = []
        for choice in choices:
            whole = mx.concatenate([embeddings, vlm.family.embed(choice)], axis=1)
            output = vlm._model.language_model(mx.array([ids + choice]), inputs_embeds=whole, cache=None)
            found.append(output.logits[0, len(ids) - 1 :].astype(mx.float32))
        return np.log(vlm.shares(found[0][:1], [(choice, one[1:]) for choice, one in zip(choices, found)]))

    return compute(embeddings), noise.bound(embeddings, compute)


def passes(vlm, ask):
    """What asking returns, and how often the language model was called for it."""
    before = vlm.meter.done
    return ask(), (vlm.meter.done - before).passes


def same(warm, other):
    return warm.status == other.status == Status.OK and warm.token_ids == other.token_ids


@pytest.mark.parametrize('sizes', SIZES)
def test_an_expanded_prompt_has_the_tokens_of_the_processor(vlm, upstream, sizes):
    pictures = frames(sizes)
    assert ours(vlm, TEXT, *prepared(vlm, pictures))[0] == batch(upstream, TEXT, pictures)[0][0].tolist()


@pytest.mark.parametrize('sizes', [*SIZES[:2], pytest.param(SIZES[2], marks=pytest.mark.numeric)])
def test_cold_logits_equal_the_library_s_own_forward(vlm, upstream, sizes):
    pictures = frames(sizes)
    ids, others = batch(upstream, TEXT, pictures)
    theirs = upstream[0](ids, others.pop('pixel_values'), mask=None, **others).logits[0]
    mine, bound = cold(vlm, TEXT, pictures)
    assert noise.apart(mine, theirs) < bound


def test_cold_answers_equal_mlx_vlm_generate(vlm, upstream):
    if vlm.family._type == 'llava':
        pytest.skip('mlx-vlm 0.7.10 hands LLaVA\'s image processor a tokenizer\'s "padding", and fails')
    session, frame = SceneSession(vlm, Config()), picture(3)
    session.observe(frame)
    prompt = apply_chat_template(upstream[1], upstream[0].config, TEXT, num_images=1)
    theirs = mlx_vlm.generate(*upstream, prompt, image=[Image.fromarray(frame.rgb)], max_tokens=24, temperature=0.0)
    stops = upstream[1].tokenizer.stopping_criteria.eos_token_ids
    answer = session.ask_cold(Question(TEXT, max_tokens=24), now_ns=0)
    assert list(answer.token_ids) == [token for token in theirs.token_ids if token not in stops]


@pytest.mark.parametrize('limit', [1, 7, 64])
def test_where_a_prefill_is_cut_makes_no_difference(vlm, monkeypatch, limit):
    ids, positions, embeddings = ours(vlm, TEXT, *prepared(vlm, frames([(480, 640), (480, 640)])))
    whole = partial(all_logits, vlm, ids, positions)
    expected, bound = whole(embeddings)[-1:], noise.bound(embeddings, whole)
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', limit)
    cut = vlm.run(vlm.new_cache(), ids, positions, embeddings=embeddings)
    assert noise.apart(cut, expected) < bound


@pytest.mark.parametrize('count', [1, 2, 12, 300, 600])
def test_logits_and_tokens_behind_a_used_snapshot_equal_cold_ones(vlm, count):
    frame, family = picture(1), vlm.family
    template, (features, grid) = vlm.template('', 1), vlm.see(frame.rgb)
    prefix, cache = family.expand(template.prefix, [grid]), vlm.new_cache()
    vlm.run(cache, prefix, family.positions(prefix, [grid]), embeddings=family.embed(prefix, features))
    snapshot, start = kv_cache.take(cache), len(prefix)
    for text in ('what is it ?', TEXT, 'no'):
        used = template.question(text)
        vlm.run(cache, used, family.text_positions(start, len(used)))
        kv_cache.restore(cache, snapshot)
    text = ' '.join((TEXT.split() * count)[:count])
    ids = template.question(text)
    warm = vlm.run(cache, ids, family.text_positions(start, len(ids)))
    tokens = vlm.decode(cache, warm, start + len(ids), 8)

    (ids, positions, embeddings), other = ours(vlm, text, *prepared(vlm, [frame])), vlm.new_cache()
    logits = vlm.run(other, ids, positions, embeddings=embeddings)
    assert noise.apart(warm, logits) < noise.bound(embeddings, partial(all_logits, vlm, ids, positions))
    assert tokens == vlm.decode(other, logits, len(ids), 8) and tokens


def test_a_session_answers_warm_as_cold(vlm):
    session = SceneSession(vlm, Config())
    for step, seed in enumerate((1, 2, 1)):
        refresh = session.observe(picture(seed, stamp_s=step))
        assert refresh.visual_tokens_refreshed == refresh.visual_tokens_total == len(vlm.see(picture(seed).rgb)[0])
        for count in (1, 3, 40, 520):
            question = Question(' '.join((TEXT.split() * count)[:count]), max_tokens=6)
            assert same(session.ask(question, now_ns=0), session.ask_cold(question, now_ns=0))
    warm, other = session.ask(CHOICE, now_ns=0), session.ask_cold(CHOICE, now_ns=0)
    assert choices_apart(warm, other) < own_scores(vlm, [picture(1)], CHOICE)[1]


def test_a_new_picture_a_question_and_its_choices_are_one_pass_where_the_model_branches(vlm):
    assert vlm.family.branches == (vlm.family._type in BRANCHING)
    session, apart = SceneSession(vlm, Config()), 1 + len(CHOICE.choices)
    for seed, level in ((1, Level.FULL), (1, Level.REUSE), (2, Level.FRAME)):
        frame = picture(seed, stamp_s=seed)
        session.look(frame)
        session.config = Config(seed=seed if level != Level.REUSE else 9)  # else the second answer is remembered
        answer, count = passes(vlm, partial(session.ask, CHOICE, now_ns=frame.stamp_ns))
        assert (answer.status, answer.level) == (Status.OK, level)
        assert count == (1 if vlm.family.branches else apart + (level != Level.REUSE))
        scores, bound = own_scores(vlm, [frame], CHOICE)
        assert noise.apart(np.log(answer.choice_scores), scores) < bound


def test_two_sessions_do_not_disturb_each_other(vlm):
    texts = 'what is it ?', TEXT, 'describe the scene'
    sessions = [SceneSession(vlm, Config(), f'camera{seed}') for seed in (1, 2)]
    alone = []
    for seed, (session, size) in enumerate(zip(sessions, [(480, 640), (640, 480)]), start=1):
        session.observe(picture(seed, size=size))
        alone.append([session.ask(Question(text, max_tokens=6), now_ns=0) for text in texts])
    for index, text in enumerate(texts):
        for session, expected in zip(sessions, alone):
            assert same(session.ask(Question(text, max_tokens=6), now_ns=0), expected[index])


def test_choices_of_two_cameras_do_not_disturb_each_other(vlm):
    pictures = [picture(1), picture(2, size=(640, 480))]
    sessions = [SceneSession(vlm, Config(), f'camera{seed}') for seed in (1, 2)]
    for stamp_s in (0, 1):
        for session, frame in zip(sessions, pictures):
            session.look(Frame(frame.rgb, stamp_ns=10**9 * stamp_s))
        for session, frame in zip(sessions, pictures):
            answer, (scores, bound) = session.ask(CHOICE, now_ns=10**9), own_scores(vlm, [frame], CHOICE)
            assert noise.apart(np.log(answer.choice_scores), scores) < bound
        pictures.reverse()


def test_another_picture_of_the_same_size_has_other_logits(vlm):
    (one, bound), (other, _) = (cold(vlm, TEXT, [picture(seed)]) for seed in (1, 2))
    assert noise.apart(one[-1], other[-1]) > WIDE * bound


def test_slots_end_behind_the_pictures_expanded_or_not(vlm):
    template = vlm.template('', 2)
    plain, pictures = template.prefix + template.question(TEXT), frames([(480, 640), (320, 960)])
    grids = [vlm.see(frame.rgb)[1] for frame in pictures]
    first, last = vlm.family.slots(plain)
    assert last == len(template.prefix)
    assert vlm.family.slots(vlm.family.expand(plain, grids)) == [
        len(vlm.family.expand(plain[:first], grids)),
        len(vlm.family.expand(plain[:last], grids)),
    ]


@pytest.mark.parametrize('size', [(480, 640), (640, 480), (1080, 1920), (100, 100)])
def test_a_grid_has_the_visual_tokens_or_a_few_less(vlm, size):
    features, grid = vlm.see(picture(1, size=size).rgb)
    count = grid.ids.count(vlm.family._image_token)
    assert len(features) == count and count - grid.rows < grid.cells <= count


def test_pictures_with_equally_many_tokens_in_another_order_are_not_equal():
    one = TokenSpan(2, 3, (7, 7, 7, 8, 7, 7, 7))
    assert one == TokenSpan(2, 3, (7, 7, 7, 8, 7, 7, 7)) and tuple(one) == (2, 3)
    assert one != TokenSpan(2, 3, (7, 7, 8, 7, 7, 8, 7, 7)) and one != (2, 3)


@pytest.mark.parametrize('at', [(0, 0), (200, 300), (456, 616)])
def test_a_small_change_anywhere_is_seen(vlm, at):
    session, frame = SceneSession(vlm, Config()), picture(1)
    session.observe(frame)
    rgb = frame.rgb.copy()
    rgb[at[0] : at[0] + 24, at[1] : at[1] + 24] ^= 0x80
    assert session.observe(Frame(rgb, stamp_ns=1)).level != Level.REUSE


@pytest.mark.parametrize(
    'count, size',
    [(576, (480, 640)), (13 * 169, (1080, 1920)), (16, (1080, 1920)), (577, (480, 640)), (2 * 1069, (480, 640))],
)
def test_small_changes_are_seen_whatever_the_number_of_visual_tokens(vlm, monkeypatch, count, size):
    """A number without divisors near the picture's shape makes a few cells less."""
    monkeypatch.setattr(vlm.family, '_processed', lambda rgb: {})
    monkeypatch.setattr(
        vlm.family, '_span', lambda inputs: (vlm.family._image_token,) * count + vlm.family._tokens.tail
    )
    rgb = np.full((*size, 3), 90, np.uint8)
    rows, columns = vlm.family.prepare(rgb)[1]
    assert count - rows < rows * columns <= count and 1 / 3 < rows / columns / (size[0] / size[1]) < 3
    # A change that is seen covers a hundredth of a cell.
    side = max(16, math.ceil((0.02 * size[0] * size[1] / (rows * columns)) ** 0.5))
    for at in (0, size[0] // 3, size[0] - side):
        changed = rgb.copy()
        changed[at : at + side, at : at + side] = 218
        assert ChangeDetector(rgb, 0, rows, columns, vlm.family.cell_px).compare(changed, 1, Config()).changed.any()


@pytest.mark.parametrize('size', [(2, 3000), (1, 1)])
def test_a_picture_that_no_camera_takes_is_refused_or_seen_as_a_whole(vlm, size):
    try:
        features, grid = vlm.see(np.zeros((*size, 3), np.uint8))
    except ImageError as error:
        assert error.cause == 'size' and 'cannot take a picture of' in str(error)
    else:
        assert grid.cells == len(features)


@pytest.mark.parametrize('start', [0, 4, 6])
def test_positions_that_are_not_the_cache_s_are_refused(vlm, start):
    cache, ids = vlm.new_cache(), [1, 2, 3, 4, 5]
    vlm.run(cache, ids, vlm.family.text_positions(0, 5))
    with pytest.raises(ModelError, match='holds 5 tokens'):
        vlm.run(cache, [1], vlm.family.text_positions(start, 1))


def test_positions_that_are_not_those_of_the_tree_are_refused(vlm):
    cache, tree = vlm.new_cache(), TokenTree.of(0, [Block([1]), Block([2], 0), Block([3], 0)])
    if not vlm.family.branches:
        pytest.skip('its cache has no stand-ins')
    with pytest.raises(ModelError, match='takes positions from its cache'):
        vlm.family.forward(
            [1, 2, 3], vlm.family.embed([1, 2, 3]), vlm.family.text_positions(0, 3), stand_ins(cache, tree)
        )


def test_a_type_without_a_family_of_its_own_gets_the_generic_one():
    assert {family_for(model_type) for model_type in (*TYPES, 'smolvlm', 'lfm2-vl')} == {generic.Family}


@pytest.mark.parametrize(
    'model_type, missing',
    [
        ('unheard_of', 'knows no such model'),
        ('../llava', 'knows no such model'),
        ('', 'knows no such model'),
        ('bert', 'gives no embeddings'),
    ],
)
def test_a_type_that_mlx_vlm_cannot_serve_is_refused_with_what_is_missing(model_type, missing):
    with pytest.raises(ModelError, match=f"type is '{model_type}', and mlx-vlm {missing}.*supported are .*qwen2_5_vl"):
        family_for(model_type)


def test_a_model_with_a_family_of_its_own_may_have_the_generic_one(tmp_path):
    family = generic.Family(*mlx_vlm.load(str(write_tiny_model(tmp_path))))
    assert family.branches and not family.one_picture and not family.encodes_cells


def test_a_model_whose_pictures_give_more_than_embeddings_is_refused(upstream, monkeypatch):
    model, processor = upstream
    plain = type(model).get_input_embeddings

    def more(self, *args, **kwargs):
        given = plain(self, *args, **kwargs)
        return upstream_base.InputEmbeddingsFeatures(given.inputs_embeds, per_layer_inputs=mx.ones((1, 1, 4, 4)))

    monkeypatch.setattr(type(model), 'get_input_embeddings', more)
    with pytest.raises(ModelError, match='give per_layer_inputs beside embeddings'):
        generic.Family(model, processor)


def test_a_model_whose_pictures_are_seen_in_both_directions_is_refused(upstream, monkeypatch):
    model, processor = upstream
    if model.config.model_type == 'lfm2_vl':
        pytest.skip('its language model makes its masks itself')
    language = type(model.language_model)
    plain = language.__call__

    def looking_ahead(self, *args, mask=None, **kwargs):
        return plain(self, *args, mask=mx.array(0.0), **kwargs)

    monkeypatch.setattr(language, '__call__', looking_ahead)
    with pytest.raises(ModelError, match='off those of mlx_vlm.generate'):
        generic.Family(model, processor)


def test_a_model_that_takes_token_types_is_refused(upstream, monkeypatch):
    """Its own forward drops them, and `mlx_vlm.generate` does not."""
    model, processor = upstream
    plain = type(processor).__call__, type(model.language_model).__call__

    def with_types(self, *args, **kwargs):
        given = plain[0](self, *args, **kwargs)
        return {**given, 'mm_token_type_ids': (mx.array(given['input_ids']) == 0).astype(mx.int32) + 1}

    def with_more(self, *args, mm_token_type_ids=None, **kwargs):
        output = plain[1](self, *args, **kwargs)
        if mm_token_type_ids is not None:
            output.logits = 1.001 * output.logits
        return output

    monkeypatch.setattr(type(processor), '__call__', with_types)
    monkeypatch.setattr(type(model.language_model), '__call__', with_more)
    with pytest.raises(ModelError, match='off those of mlx_vlm.generate'):
        generic.Family(model, processor)


def with_other_answers(change, monkeypatch):
    """Let `mlx_vlm.generate` give what `change` makes of its log-probabilities."""
    plain = probe.generated

    def generated(*args):
        tokens, found = plain(*args)
        return tokens, change(found)

    monkeypatch.setattr(probe, 'generated', generated)


@pytest.mark.parametrize('change', [lambda logits: logits[:, ::-1], lambda logits: 1.001 * logits])
def test_a_model_that_answers_otherwise_is_refused(upstream, monkeypatch, change):
    with_other_answers(change, monkeypatch)
    with pytest.raises(ModelError, match='off those of mlx_vlm.generate'):
        generic.Family(*upstream)


@pytest.mark.parametrize('kind', [mx.float16, mx.bfloat16])
def test_half_precision_is_served_and_its_noise_hides_no_fault(model_dir, monkeypatch, kind):
    model, processor = mlx_vlm.load(str(model_dir))
    model.set_dtype(kind)
    generic.Family(model, processor)
    with_other_answers(lambda logits: logits[:, ::-1], monkeypatch)
    with pytest.raises(ModelError, match='off those of mlx_vlm.generate'):
        generic.Family(model, processor)


@pytest.mark.parametrize(
    'change, reason',
    [
        (lambda processor: partial(dict, input_ids=[[1, 2, 3]]), 'changes more of a chat'),
        (lambda processor: partial(dict, pixel_values=None), 'does not go through it .KeyError'),
    ],
)
def test_a_processor_that_does_something_else_is_refused(upstream, monkeypatch, change, reason):
    model, processor = upstream
    call = change(processor)
    monkeypatch.setattr(type(processor), '__call__', lambda self, **kwargs: call())
    with pytest.raises(ModelError, match=reason):
        generic.Family(model, processor)


def test_a_chat_without_a_token_for_the_picture_is_refused(upstream, monkeypatch):
    monkeypatch.setattr(generic, 'rendered', lambda *args, **kwargs: 'what is it ?')
    with pytest.raises(ModelError, match='no single token for a picture|does not go through it'):
        generic.Family(*upstream)


@pytest.fixture
def fresh(model_dir):
    """Model and processor of a type that branches, to be changed."""
    if model_dir.name not in BRANCHING:
        pytest.skip('it does not branch as it is')
    return mlx_vlm.load(str(model_dir))


def first_place(cache):
    """Place of a call's first token; what a model finds that knows nothing of branches."""
    entry = cache[0] if isinstance(cache, list) else cache
    return 0 if entry is None else int(mx.array(entry.offset).reshape(-1)[0].item())


def masks(model, monkeypatch, make):
    """Let the language model make its masks by make(its own function, hidden states, cache)."""
    module = import_module(type(model.language_model).__module__)
    plain = module.create_attention_mask
    monkeypatch.setattr(module, 'create_attention_mask', lambda h, cache=None, **_: make(plain, h, cache))


def change_ropes(model, kind):
    for name, module in model.language_model.named_modules():
        if name.endswith('rope'):
            module.__class__ = kind


def masks_of_its_own(model, monkeypatch):
    masks(model, monkeypatch, lambda plain, h, cache: create_causal_mask(h.shape[1], first_place(cache)))


def window_of_its_own(model, monkeypatch):
    def make(plain, h, cache):
        rows = mx.arange(first_place(cache) + h.shape[1])
        seen = plain(h, cache, return_array=True)
        return (mx.array(True) if seen is None else seen) & (rows[-h.shape[1] :, None] - rows < 4096)

    masks(model, monkeypatch, make)
    model.config.text_config.sliding_window = 4096


def ring_that_is_not_asked(model, monkeypatch):
    language = model.language_model
    cache = [mlx_vlm.models.cache.KVCache, partial(RotatingKVCache, 4096)]
    monkeypatch.setattr(type(language), 'make_cache', lambda self: [make() for make in cache], raising=False)


def biases_by_row(model, monkeypatch):
    def make(plain, h, cache):
        rows = mx.arange(first_place(cache) + h.shape[1])
        seen = plain(h, cache, return_array=True)
        seen = mx.ones((1, len(rows)), mx.bool_) if seen is None else seen
        return mx.where(seen, -0.2 * mx.abs(rows[-h.shape[1] :, None] - rows), -1e9).astype(h.dtype)

    masks(model, monkeypatch, make)


def positions_that_follow_each_other(model, monkeypatch):
    class Rope(nn.RoPE):
        def __call__(self, x, offset=0):
            return super().__call__(x, offset if isinstance(offset, int) else int(offset.reshape(-1)[0].item()))

    change_ropes(model, Rope)


def rope_that_takes_more(model, monkeypatch):
    class Rope(nn.RoPE):
        def __call__(self, x, offset=0, other=None):
            return super().__call__(x, offset)

    change_ropes(model, Rope)


def learnt_positions(model, monkeypatch):
    language = type(model.language_model)
    plain = language.__call__
    table = mx.random.normal((2048, 48), key=mx.random.key(5))

    def placed(self, inputs, inputs_embeds=None, cache=None, **kwargs):
        first = first_place(cache)
        inputs_embeds = getattr(self, 'model', self).embed_tokens(inputs) if inputs_embeds is None else inputs_embeds
        embeddings = inputs_embeds + table[first : first + inputs_embeds.shape[1]].astype(inputs_embeds.dtype)
        return plain(self, inputs, inputs_embeds=embeddings, cache=cache, **kwargs)

    monkeypatch.setattr(language, '__call__', placed)


UNABLE = [
    masks_of_its_own,
    window_of_its_own,
    ring_that_is_not_asked,
    biases_by_row,
    positions_that_follow_each_other,
    rope_that_takes_more,
    learnt_positions,
]


@pytest.mark.parametrize('change', UNABLE)
def test_a_model_that_takes_no_positions_or_masks_from_its_cache_answers_in_turn(fresh, monkeypatch, change):
    model, processor = fresh
    change(model, monkeypatch)
    family = generic.Family(model, processor)
    assert not family.branches
    vlm, frame = vlms.Vlm('changed', model, processor, family, ''), picture(1)
    session = SceneSession(vlm, Config())
    session.look(frame)
    answer, count = passes(vlm, partial(session.ask, CHOICE, now_ns=0))
    assert count == 2 + len(CHOICE.choices)
    scores, bound = own_scores(vlm, [frame], CHOICE)
    assert noise.apart(np.log(answer.choice_scores), scores) < bound


@pytest.mark.parametrize('change', [None, UNABLE[0]])
def test_the_noise_of_half_precision_hides_no_branch_that_is_wrong(fresh, monkeypatch, change):
    model, processor = fresh
    model.set_dtype(mx.bfloat16)
    if change is not None:
        change(model, monkeypatch)
    assert generic.Family(model, processor).branches == (change is None)


@pytest.mark.parametrize('window', [20, 4096])
@pytest.mark.parametrize('is_ring', [True, False])
def test_a_model_that_looks_back_a_window_branches(fresh, monkeypatch, window, is_ring):
    model, processor = fresh
    masks(model, monkeypatch, lambda plain, h, cache: plain(h, cache, window_size=window))
    model.config.text_config.sliding_window = window
    if is_ring:
        monkeypatch.setattr(
            type(model.language_model),
            'make_cache',
            lambda self: [RotatingKVCache(window) for _ in self.layers],
            raising=False,
        )
    vlm = vlms.Vlm('windowed', model, processor, generic.Family(model, processor), '')
    assert vlm.family.branches
    session = SceneSession(vlm, Config())
    for seed in (1, 2):
        frame = picture(seed, stamp_s=seed)
        session.look(frame)
        answer, count = passes(vlm, partial(session.ask, CHOICE, now_ns=frame.stamp_ns))
        scores, bound = own_scores(vlm, [frame], CHOICE)
        assert count == 1 and noise.apart(np.log(answer.choice_scores), scores) < bound


def test_a_scale_of_queries_that_grows_with_their_place_is_no_matter_for_branches(fresh):
    model, processor = fresh
    model.config.text_config.rope_scaling = {'type': 'yarn', 'llama_4_scaling_beta': 0.1}
    assert not generic.Family(model, processor).branches


def test_a_model_that_scales_what_it_is_given_in_place_branches(fresh, monkeypatch):
    model, processor = fresh
    language = type(model.language_model)
    plain = language.__call__

    def scaling(self, inputs, inputs_embeds=None, **kwargs):
        inputs_embeds = getattr(self, 'model', self).embed_tokens(inputs) if inputs_embeds is None else inputs_embeds
        inputs_embeds *= 2
        return plain(self, inputs, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(language, '__call__', scaling)
    assert generic.Family(model, processor).branches


def test_placing_ropes_changes_no_weights_and_no_attributes(fresh):
    language = fresh[0].language_model
    names, bases = [], []
    for _ in range(2):
        names.append([name for name, _ in tree_flatten(language.parameters())])
        bases.append([module.base for name, module in language.named_modules() if name.endswith('rope')])
        place_ropes(language)
    kinds = [type(module) for name, module in language.named_modules() if name.endswith('rope')]
    assert names[0] == names[1] and bases[0] == bases[1]
    assert len(kinds) == 2 and all(kind.__mro__.count(nn.RoPE) == 1 and kind is kinds[0] for kind in kinds)


def test_quantised_weights_branch(fresh):
    model, processor = fresh
    nn.quantize(
        model.language_model,
        group_size=32,
        bits=8,
        class_predicate=lambda name, module: hasattr(module, 'to_quantized') and module.weight.shape[1] % 32 == 0,
    )
    assert any('scales' in name for name, _ in tree_flatten(model.language_model.parameters()))
    assert generic.Family(model, processor).branches


def test_why_a_model_does_not_branch_is_logged_once(model_dir, caplog):
    caplog.set_level('INFO')
    loading.load(str(model_dir))
    lines = [record.getMessage() for record in caplog.records if 'one after the other' in record.getMessage()]
    assert len(lines) == (model_dir.name not in BRANCHING)
    assert all('recurrent' in line or 'its cache holds more' in line for line in lines)
