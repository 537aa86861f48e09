"""What a follow-up question costs: cold, from the kept state, through mlx-vlm, and at the least.

One process, one set of weights (random, `shapes.py`), one arm after the other, on the same pictures and questions:

cold   image processor, vision tower, prefill of everything, decode (`SceneSession.ask_cold`)
warm   the kept state, the whole call (`SceneSession.ask`)
floor  forward of the question's tokens, then of the answer's, on a ready cache, nothing else. That cache is a copy
       which no snapshot shares: what a snapshot makes the first write pay counts against warm. A choice has as many
       forward calls as `Vlm.score` makes: one for all, or one for each where the model takes no mask
peers  mlx-vlm's `generate` cold; with `PromptCacheState`; with APC. The last two have answered another question about
       the same pictures before, in one untimed run that fills both; follow-ups are timed until one is slow, at most
       three, and checked

A question is 12 tokens behind the snapshot, the chat template's end with it; a text has 8 tokens, greedily. Warm and
floor alternate and are medians; cold is one run where it takes long, the median of three at one or two pictures.
Peers answer in text only: mlx-vlm scores no choices, and one token of text is less work, so choice rows have no peers.

Written as JSON, times in milliseconds, `null` for what was not measured:
rows    a question on a state: cold_ms, warm_ms, floor_ms, speedup (cold / warm), warm_over_floor, snapshot_restore_ms
        (`kv_cache.take` and `restore`, their share of warm_ms beside), equal_to_cold (the answer's tokens; of a choice
        the index), max_logprob_difference between warm and cold, noise_floor: the largest one between cold and cold
        (`model/noise.py`): the pictures' features moved by one unit in the last place, and another chunk grid (the
        state's own, and half a picture's tokens; noise_grids). peers: name -> ms, tokens_reused, answer_right (equal to
        generate's cold tokens), answer_right_after_new_picture (the newest picture replaced by another one of its size,
        and the question before the last asked again), and a reason where something is missing
states  a number of pictures: frame_ms (a new picture in the newest one's place, `Level.FRAME`), full_ms (everything
        from nothing), held_bytes (cache and snapshots, after questions; flat layers grow by 256 tokens at a time, which
        shows at few pictures), needed_bytes (K and V that the prompt's tokens need, of a sliding layer at most its
        window), ring_bytes (the sliding layers' part of that), features_bytes (of the pictures, beside the cache)
shapes  parameters, cells of a picture
worst   each promise over all rows, as printed at the end
"""

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_vlm import apc, generate
from mlx_vlm.generate import PromptCacheState
from mlx_vlm.models.cache import RotatingKVCache
from mlx_vlm.prompt_utils import apply_chat_template
from PIL import Image
from results import publish
from shapes import SHAPES
from tiny_model import picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import kv_cache, loading, noise
from vlm_reuse_node.model import vlm as vlms
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.state import State

OUTPUT = Path(__file__).parents[1] / 'out' / 'bench' / 'followup.json'
QUESTION_TOKENS, ANSWER_TOKENS = 12, 8
QUESTION = 'what color is the square on the left ?'.split()
OTHER = 'how many red or blue objects do you see ?'.split()
CHOICES = ('red', 'green', 'blue', 'yellow')
SIDE_PX = 240
FEW_FRAMES, FEW_RUNS = 2, 3
SLOW_MS = 1000
PEERS = 'generate', 'PromptCacheState', 'APC'
NEW_PICTURES = 12  # most of them tried until one changes the answer


@dataclass(frozen=True)
class Scene:
    """A session that has seen its pictures, and the two texts it is asked."""

    vlm: Vlm
    session: SceneSession
    question: str
    other: str

    @property
    def state(self) -> State:
        """What the session keeps."""
        return self.session._refresher.state

    def ask(self, text: str, choices: tuple[str, ...] = (), cold: bool = False) -> Answer:
        """Answer warm or cold. Raises RuntimeError when there is none of the expected length."""
        ask = self.session.ask_cold if cold else self.session.ask
        answer = ask(Question(text, choices, max_tokens=ANSWER_TOKENS), now_ns=self.session.newest.stamp_ns)
        if answer.status != Status.OK or (not choices and answer.tokens_generated != ANSWER_TOKENS):
            raise RuntimeError(f'{answer.status}, {answer.tokens_generated} tokens: {answer.message}')
        return answer


class ColdBuilds:
    """Notes how long a session's cold answers take for their states (`full`), and keeps the newest of these."""

    def __init__(self, session: SceneSession):
        """Stand in for what builds them."""
        self.times_ms: list[float] = []
        self.newest: State | None = None
        self._build, session._cold_twin = session._cold_twin, self

    def __call__(self, *arguments) -> State:
        """Build one."""
        ms, self.newest = timed(lambda: self._build(*arguments))
        self.times_ms.append(ms)
        return self.newest


def timed(call: Callable) -> tuple[float, object]:
    """Milliseconds of a call, and what it returned."""
    started = time.perf_counter()
    result = call()
    return 1e3 * (time.perf_counter() - started), result


def fitted(vlm: Vlm, words: list[str]) -> str:
    """As many of the words as make a question of QUESTION_TOKENS tokens behind the snapshot."""
    template = vlm.template('', 1)
    for count in range(len(words), 0, -1):
        if len(template.question(text := ' '.join(words[:count]))) == QUESTION_TOKENS:
            return text
    raise RuntimeError(f'No part of {words} makes a question of {QUESTION_TOKENS} tokens.')


def see(vlm: Vlm, frames: int) -> Scene:
    """A session that keeps so many pictures."""
    session = SceneSession(vlm, Config(history_frames=frames - 1, keyframe_interval_s=0.0, timeout_s=3600.0))
    for number in range(frames):
        session.observe(picture(number, float(number), size=(SIDE_PX, SIDE_PX)))
    assert len(session._refresher.state.frames) == frames
    return Scene(vlm, session, fitted(vlm, QUESTION), fitted(vlm, OTHER))


def own_copy(cache: list) -> list:
    """The cache with arrays that nothing else holds, so that writing into them copies nothing."""
    copied = copy.deepcopy(cache)
    for entry in copied:
        entry.keys, entry.values = mx.array(np.array(entry.keys)), mx.array(np.array(entry.values))
    return copied


def floor_text(scene: Scene) -> tuple[float, list[int]]:
    """Time and tokens of an answer on a ready cache."""
    family, cache, start = scene.vlm.family, own_copy(scene.state.cache), scene.state.next_position
    given, answer = scene.state.template.question(scene.question), []

    def run():
        position, ids = start, given
        while True:
            logits = family.forward(ids, family.embed(ids), family.text_positions(position, len(ids)), cache)
            answer.append(mx.argmax(logits[-1]).item())
            if len(answer) == ANSWER_TOKENS:
                return
            position, ids = position + len(ids), answer[-1:]

    return timed(run)[0], answer


def floor_choice(scene: Scene) -> float:
    """Time of the forward calls of a choice on ready caches."""
    family = scene.vlm.family
    given, choices = scene.state.template.question(scene.question), scene.state.template.choices(CHOICES)
    cache, start = own_copy(scene.state.cache), scene.state.next_position + len(given)

    def run(cache, ids, positions, keep, mask):
        masked = {} if mask is None else {'mask': mask}
        mx.eval(family.forward(ids, family.embed(ids), positions, cache, keep, **masked))

    asked_ms, _ = timed(
        lambda: run(cache, given, family.text_positions(scene.state.next_position, len(given)), 1, None)
    )
    if family.takes_mask:
        groups = [(sum(choices, []), np.concatenate([family.text_positions(start, len(ids)) for ids in choices], 1))]
        owner = np.repeat(np.arange(len(choices)), [len(ids) for ids in choices])
        among = (owner[:, None] == owner[None]) & np.tri(len(owner), dtype=bool)
        held = scene.state.tokens + len(given)
        mask = mx.array(np.concatenate([np.ones((len(owner), held), bool), among], axis=1))
    else:
        groups, mask = [(ids, family.text_positions(start, len(ids))) for ids in choices], None
    return asked_ms + sum(
        timed(lambda: run(own, ids, positions, len(ids), mask))[0]
        for ids, positions in groups
        for own in [own_copy(cache)]
    )


def log_probabilities(scene: Scene, state: State, answer: Answer, choices: tuple[str, ...]) -> np.ndarray:
    """Of a text's tokens, (tokens, vocabulary), behind the given answer's; or of the choices, (choices,)."""
    vlm, ids = scene.vlm, state.template.question(scene.question)
    start = state.next_position
    logits = vlm.run(state.cache, ids, vlm.family.text_positions(start, len(ids)))
    start += len(ids)
    if choices:
        scores = np.log(vlm.score(state.cache, logits, start, state.template.choices(choices)))
        state.restore()
        return scores
    rows = [logits]
    for number, token in enumerate(answer.token_ids[:-1]):
        rows.append(vlm.run(state.cache, [token], vlm.family.text_positions(start + number, 1)))
    state.restore()
    logits = np.array(mx.concatenate(rows), np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def snapshot_restore_ms(scene: Scene) -> float:
    """Taking a snapshot and, once a question has run behind it, going back."""
    vlm, state = scene.vlm, scene.state
    take_ms, snapshot = timed(lambda: kv_cache.take(state.cache))
    ids = state.template.question(scene.question)
    vlm.run(state.cache, ids, vlm.family.text_positions(state.next_position, len(ids)))
    restore_ms, _ = timed(lambda: kv_cache.restore(state.cache, snapshot))
    return take_ms + restore_ms


def measure_question(
    scene: Scene, choices: tuple[str, ...], builds: ColdBuilds, grids: list[int], repeats: int
) -> dict:
    """One row. grids: most tokens of a call, as usual and for another cold run."""
    warm, floor = [], []
    for _ in range(repeats + 1):
        warm.append(timed(lambda: scene.ask(scene.question, choices)))
        floor.append((floor_choice(scene), None) if choices else floor_text(scene))
    answer = warm[-1][1]
    warm_ms, floor_ms = (median(ms for ms, _ in runs[1:]) for runs in (warm, floor))  # the first one warms up
    if not choices and floor[-1][1] != list(answer.token_ids):
        raise RuntimeError(f'The floor answers {floor[-1][1]}, the session {answer.token_ids}.')
    cold = [timed(lambda: scene.ask(scene.question, choices, cold=True)) for _ in range(cold_runs(scene))]
    cold_ms = median(ms for ms, _ in cold)
    tables = [log_probabilities(scene, state, answer, choices) for state in (scene.state, builds.newest)]
    kept_ms = median(snapshot_restore_ms(scene) for _ in range(repeats))
    return {
        'question': 'choice' if choices else 'text',
        'prompt_tokens': scene.state.tokens + QUESTION_TOKENS,
        'question_tokens': answer.tokens_prefilled - sum(map(len, scene.state.template.choices(choices))),
        'answer_tokens': answer.tokens_generated,
        'cold_ms': cold_ms,
        'warm_ms': warm_ms,
        'floor_ms': floor_ms,
        'speedup': cold_ms / warm_ms,
        'warm_over_floor': warm_ms / floor_ms,
        'equal_to_cold': all(
            (answer.token_ids, answer.choice_index) == (other.token_ids, other.choice_index) for _, other in cold
        ),
        'max_logprob_difference': noise.apart(*tables),
        'noise_floor': noise_floor(scene, answer, choices, grids),
        'snapshot_restore_ms': kept_ms,
        'snapshot_restore_share': kept_ms / warm_ms,
        'peers': {},
    }


def cold_runs(scene: Scene) -> int:
    return FEW_RUNS if len(scene.state.frames) <= FEW_FRAMES else 1


def noise_floor(scene: Scene, answer: Answer, choices: tuple[str, ...], grids: list[int]) -> float:
    """How far rounding moves `log_probabilities` behind a cold state of the kept pictures."""

    def cold(grid, features):
        return log_probabilities(scene, build_on_grid(scene, grid, features), answer, choices)

    given = [picture.features for picture in scene.state.frames]
    return noise.floor(given, *(partial(cold, grid) for grid in grids))


def build_on_grid(scene: Scene, tokens: int, features: list[mx.array]) -> State:
    """A state of the kept pictures with these features, prefilled in chunks of at most so many tokens."""
    usual, vlms.PREFILL_CHUNK = vlms.PREFILL_CHUNK, tokens
    seen = [replace(picture, features=each, vision=None) for picture, each in zip(scene.state.frames, features)]
    try:
        return states.build(scene.vlm, scene.session._template_for, seen)
    finally:
        vlms.PREFILL_CHUNK = usual


def memory(state: State) -> dict:
    """Bytes that are held, and those that the tokens need."""
    needed = rings = 0
    for entry in state.cache:
        ring = type(entry) is RotatingKVCache
        rows = min(entry.offset, entry.max_size) if ring else entry.offset
        size = (entry.keys[:, :, :1].nbytes + entry.values[:, :, :1].nbytes) * rows
        needed, rings = needed + size, rings + ring * size
    features = sum(each.features.nbytes for each in state.frames)
    return {
        'held_bytes': state.held_bytes - features,
        'needed_bytes': needed,
        'ring_bytes': rings,
        'features_bytes': features,
    }


def replace_newest(scene: Scene, runs: int) -> tuple[float, bool]:
    """Put new pictures in the newest one's place until one changes the answer to `other`.

    Returns the median time of a refresh at level `frame`, over at least so many, and whether one was found.
    """
    old = scene.ask(scene.other).token_ids
    scene.session.config = replace(scene.session.config, history_frames=0)  # no more keyframes: each takes the place
    times, stamp_s = [], scene.session.newest.stamp_ns / 1e9
    for number in range(1, NEW_PICTURES + 1):
        new = picture(1000 + number, stamp_s + number, size=(SIDE_PX, SIDE_PX))
        ms, refresh = timed(lambda: scene.session.observe(new))
        assert refresh.level == Level.FRAME
        times.append(ms)
        changed = scene.ask(scene.other).token_ids != old
        if changed and len(times) >= runs:
            break
    return median(times), changed


@dataclass(frozen=True)
class Peers:
    """mlx-vlm's ways to answer a scene's question, on the same weights.

    old, new: frames, before and after the newest one was replaced. told_apart: whether that changes cold answers.
    """

    scene: Scene
    old: list[Frame]
    new: list[Frame]
    told_apart: bool

    def measure(self, ours: Answer) -> dict:
        """An entry for each way. `generate` cold is the reference of the others. ours: our answer."""
        try:
            runs = [self.run(self.scene.question, self.old) for _ in range(cold_runs(self.scene))]
        except Exception as error:
            return dict.fromkeys(PEERS, failed(error))
        answer = runs[0][1]
        cold = {
            'ms': median(ms for ms, *_ in runs),
            'tokens_reused': 0,
            'answer_right': True,
            'answer_right_after_new_picture': True,
            'answer_equal_to_ours': answer == list(ours.token_ids),
        }
        caches = {'prompt_cache_state': PromptCacheState(), 'apc_manager': apc.APCManager()}
        try:
            self.run(self.scene.other, self.old, **caches)  # fills both
        except Exception as error:
            return {PEERS[0]: cold} | dict.fromkeys(PEERS[1:], failed(error))
        return dict(zip(PEERS, (cold, *(self.follow_up(answer, **{name: kept}) for name, kept in caches.items()))))

    def run(self, text: str, frames: list[Frame], **options) -> tuple[float, list[int], int]:
        """Milliseconds, the answer's tokens, and the prompt tokens that were reused."""
        model, processor = self.scene.vlm._model, self.scene.vlm._processor
        chat = [{'role': 'user', 'content': text}]
        prompt = apply_chat_template(processor, model.config, chat, num_images=len(frames))
        images = [Image.fromarray(frame.rgb) for frame in frames]
        ms, result = timed(
            lambda: generate(
                model, processor, prompt, image=images, max_tokens=ANSWER_TOKENS, temperature=0.0, **options
            )
        )
        return ms, list(result.token_ids), result.cached_tokens

    def follow_up(self, answer: list[int], **options) -> dict:
        """The entry of one that keeps something between questions. answer: the right one."""
        question, other = self.scene.question, self.scene.other
        try:
            asked = [self.run(question, self.old, **options)]
            while len(asked) < FEW_RUNS and asked[-1][0] < SLOW_MS:
                self.run(other, self.old, **options)
                asked.append(self.run(question, self.old, **options))
            entry = {
                'ms': median(ms for ms, *_ in asked),
                'tokens_reused': max(reused for *_, reused in asked),
                'answer_right': all(ids == answer for _, ids, _ in asked),
                'answer_right_after_new_picture': None,
            }
            if not entry['tokens_reused']:
                return entry | {'reason': 'Nothing is reused: every answer is a cold one.'}
            if not self.told_apart:
                return entry | {'reason': 'No new picture was found that changes the cold answer.'}
            after = self.run(other, self.new, **options)[1]
            return entry | {'answer_right_after_new_picture': after == self.run(other, self.new)[1]}
        except Exception as error:
            return failed(error)


def failed(error: Exception) -> dict:
    """The entry of a peer that cannot run."""
    return {
        'ms': None,
        'tokens_reused': None,
        'answer_right': None,
        'answer_right_after_new_picture': None,
        'reason': ' '.join(f'{type(error).__name__}: {error}'.split())[:200],
    }


def measure(vlm: Vlm, frames: int, repeats: int) -> tuple[dict, list[dict]]:
    """One state and its rows."""
    scene = see(vlm, frames)
    grids = [vlms.PREFILL_CHUNK, scene.state.live.grid.cells // 2]
    builds = ColdBuilds(scene.session)
    rows = [measure_question(scene, choices, builds, grids, repeats) for choices in ((), CHOICES)]
    state = {'frames': frames, **memory(scene.state), 'full_ms': median(builds.times_ms)}
    ours, old = scene.ask(scene.question), [kept.frame for kept in scene.state.frames]
    frame_ms, told_apart = replace_newest(scene, FEW_RUNS)
    new = [kept.frame for kept in scene.state.frames]
    rows[0]['peers'] = Peers(scene, old, new, told_apart).measure(ours)
    return state | {'frame_ms': frame_ms}, [{'frames': frames, **row, 'noise_grids': grids} for row in rows]


def worst(result: dict) -> dict:
    """Each promise over all rows, named with its limit."""
    rows, states = result['rows'], result['states']
    most = max(state['frames'] for state in states)
    at_8 = [state['frame_ms'] / state['full_ms'] for state in states if state['frames'] == 8]
    return {
        'answers equal to cold, share of rows (limit 1)': sum(row['equal_to_cold'] for row in rows) / len(rows),
        f'log-prob difference warm-cold / its noise floor, largest (limit {noise.FACTOR:g})': max(
            row['max_logprob_difference'] / row['noise_floor'] for row in rows
        ),
        'warm / floor, largest (limit 1.10)': max(row['warm_over_floor'] for row in rows),
        'snapshot + restore / warm, largest (limit 0.01)': max(row['snapshot_restore_share'] for row in rows),
        'frame / full at 8 pictures, largest (limit 0.167)': max(at_8, default=None),
        f'held / (1.1 x K and V the tokens need + rings) at {most} pictures, largest (limit 1)': max(
            state['held_bytes'] / (1.1 * state['needed_bytes'] + state['ring_bytes'])
            for state in states
            if state['frames'] == most
        ),
    }


COLUMNS = (
    ('shape', 11),
    ('pictures', 8),
    ('question', 8),
    ('cold ms', 9),
    ('warm ms', 9),
    ('floor ms', 9),
    ('cold/warm', 9),
    ('warm/floor', 10),
    ('equal', 5),
    *((f'{name}/warm', len(name) + 9) for name in PEERS),
)


def line(row: dict) -> str:
    """A row of the table; a peer that answers wrong says so, at once or once the newest picture is another one."""

    def peer(name):
        entry = row['peers'].get(name)
        if entry is None:
            return 'no choices'
        if entry['ms'] is None:
            return 'cannot'
        wrong = '' if entry['answer_right'] else ' wrong'
        stale = ' stale' if entry['answer_right_after_new_picture'] is False else ''
        return f'{entry["ms"] / row["warm_ms"]:.1f}{wrong}{stale}'

    values = (
        row['shape'],
        row['frames'],
        row['question'],
        f'{row["cold_ms"]:.1f}',
        f'{row["warm_ms"]:.1f}',
        f'{row["floor_ms"]:.1f}',
        f'{row["speedup"]:.1f}',
        f'{row["warm_over_floor"]:.2f}',
        'yes' if row['equal_to_cold'] else 'NO',
        *map(peer, PEERS),
    )
    return '  '.join(str(value).rjust(width) for value, (_, width) in zip(values, COLUMNS))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES), help='default: all')
    parser.add_argument(
        '--frames', nargs='+', type=int, default=[1, 8, 20, 32], help='pictures in the state; default: %(default)s'
    )
    parser.add_argument('--repeats', type=int, default=5, help='warm and floor runs of each; default: %(default)s')
    parser.add_argument('--tiny', action='store_true', help="the tests' models: to try this program, not to time")
    parser.add_argument('--output', type=Path, default=OUTPUT, help='the JSON file; default: %(default)s')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and write the file."""
    arguments = build_parser().parse_args(argv)
    result = {'rows': [], 'states': [], 'shapes': {}}
    print('  '.join(title.rjust(width) for title, width in COLUMNS), flush=True)
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            vlm = loading.load(str(SHAPES[shape](Path(folder) / shape, arguments.tiny)))
        for frames in arguments.frames:
            state, rows = measure(vlm, frames, arguments.repeats)
            result['states'].append({'shape': shape, **state})
            result['rows'] += [{'shape': shape, **row} for row in rows]
            print(*(line({'shape': shape, **row}) for row in rows), sep='\n', flush=True)
        result['shapes'][shape] = {
            'parameters': sum(array.size for _, array in tree_flatten(vlm._model.parameters())),
            'cells': vlm.see(picture(0, size=(SIDE_PX, SIDE_PX)).rgb)[1].cells,
        }
    result['worst'] = worst(result)
    for name, value in result['worst'].items():
        print(f'{name}: {"not measured" if value is None else f"{value:.4g}"}')
    publish(result, arguments.output)
    return 0


if __name__ == '__main__':
    sys.exit(main())
