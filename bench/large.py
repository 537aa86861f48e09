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

"""Follow-up questions on a model of real size, in half precision or 4 bits: for a GPU, or a Mac.

The shape is that of Qwen2.5-VL 3B (3.4 billion parameters) with random weights and a small vocabulary, so nothing is
downloaded; it is written to a temporary folder first (7 GB, minutes). For each number of pictures in the prompt, a
question is answered from the kept state (warm) and cold-dense (cold), as a text of 8 tokens and as one of 3 choices.
The calls follow each other in random order, in rounds, after one that does not count. Times are on the clock: a GPU's
work does not show in the processor's time. `again` is warm once more; warm / again is the noise.

Written as JSON, one row for each number of pictures: tokens (of the prompt), and for `text` and `choice` warm_ms,
cold_ms, again_ms (medians), speedup (cold / warm) and equal (warm answers with cold's tokens, of rounds). Random
weights give answers that are nearly ties, and half precision moves log-probabilities of a deep random model by more
than that: equal says less here than with trained weights. `check` says how far they move.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np
from results import publish
from shapes import QWEN, QWEN_VISION, write_qwen2_5_vl
from timing import in_random_order, run

sys.path.append(str(Path(__file__).parents[1] / 'test'))

from quantised import quantise  # noqa: E402

from vlm_reuse_node.config import Config  # noqa: E402
from vlm_reuse_node.model import loading  # noqa: E402
from vlm_reuse_node.model.vlm import Vlm  # noqa: E402
from vlm_reuse_node.scene.frame import Frame  # noqa: E402
from vlm_reuse_node.session.question import Question  # noqa: E402
from vlm_reuse_node.session.scene_session import SceneSession  # noqa: E402

OUTPUT = Path(__file__).parents[1] / 'out' / 'bench' / 'large.json'
TEXT = QWEN | {'hidden_size': 2048, 'intermediate_size': 11008, 'num_hidden_layers': 36, 'num_attention_heads': 16}
VISION = QWEN_VISION | {
    'depth': 32,
    'hidden_size': 1280,
    'intermediate_size': 3420,
    'num_heads': 16,
    'fullatt_block_indexes': [7, 15, 23, 31],
}
CELLS = 400  # 391 at 640 x 480
# The shapes' weights are for a few layers. With so many, larger ones would let rounding grow from layer to layer.
MATRIX_SCALE = 0.4
FOUR_BITS = {'bits': 4, 'group_size': 64, 'mode': 'affine'}
ASKED = ('is the square red ?', 'is the circle blue ?', 'how many objects are there ?', 'what is it ?', 'is it blue ?')
CHOICES = ('yes', 'no', 'blue circle')
KINDS: dict[str, dict[str, Any]] = {'text': {'max_tokens': 8}, 'choice': {'choices': CHOICES}}


def write_model(folder: Path, precision: str, tiny: bool) -> Path:
    """Write the model in bfloat16 or 4 bits. tiny: the tests' model."""
    write_qwen2_5_vl(folder, tiny, CELLS, TEXT, VISION)
    file = folder / 'model.safetensors'
    loaded: Any = mx.load(str(file))
    scaled = {
        name: (array * MATRIX_SCALE if array.ndim > 1 and 'lm_head' not in name else array).astype(mx.bfloat16)
        for name, array in loaded.items()
    }
    mx.eval(scaled)
    mx.save_safetensors(str(file), scaled)
    return quantise(folder, FOUR_BITS) if precision == '4-bit' else folder


def scene(number: int) -> Frame:
    """A picture of coloured blocks, 640 x 480."""
    blocks = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Frame(rgb=blocks.repeat(40, 0).repeat(40, 1), stamp_ns=number * 1_000_000_000)


def measure(vlm: Vlm, pictures: int, rounds: int, chance: random.Random) -> dict[str, Any]:
    """Return the row of so many pictures in the prompt."""
    config = Config(refresh_policy='exact', history_frames=pictures - 1, keyframe_interval_s=0.5)
    session = SceneSession(vlm, config)
    for number in range(pictures):
        session.observe(scene(number + 1))
    now_ns = scene(pictures).stamp_ns
    row: dict[str, Any] = {'pictures': pictures, 'tokens': session._refresher.state.tokens}
    for kind, given in KINDS.items():
        asked = {name: iter([Question(text, **given) for text in order(name, rounds)]) for name in ARMS}
        arms = {
            name: lambda name=name: run(vlm, lambda: getattr(session, ARMS[name])(next(asked[name]), now_ns=now_ns))
            for name in ARMS
        }
        runs = in_random_order(arms, rounds, chance)
        ms = {f'{name}_ms': median(each.ms for each in done) for name, done in runs.items()}
        tokens = [
            [each.result.token_ids or each.result.choice_index for each in runs[name]] for name in ('warm', 'cold')
        ]
        row[kind] = ms | {
            'speedup': ms['cold_ms'] / ms['warm_ms'],
            'equal': sum(warm == cold for warm, cold in zip(*tokens)),
            'rounds': rounds,
        }
    return row


ARMS = {'warm': 'ask', 'again': 'ask', 'cold': 'ask_cold'}


def order(arm: str, rounds: int) -> list[str]:
    """The questions of an arm: those of cold are warm's, and again's are others, else they would be remembered."""
    first = 'the' if arm == 'again' else 'a'
    return [f'{ASKED[number % len(ASKED)]} {first} ' + 'red ' * (number // len(ASKED)) for number in range(rounds + 1)]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--precision', choices=['bfloat16', '4-bit'], default='bfloat16', help='default: %(default)s')
    parser.add_argument('--pictures', type=int, nargs='+', default=[8, 20, 32], help='in the prompt; default: 8 20 32')
    parser.add_argument('--rounds', type=int, default=5, help='default: %(default)s')
    parser.add_argument('--tiny', action='store_true', help="the tests' model: the times say nothing")
    parser.add_argument('--output', type=Path, default=OUTPUT, help='default: out/bench/large.json')
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        vlm = loading.load(str(write_model(Path(folder), options.precision, options.tiny)))
        print(f'{vlm.precision} on {vlm.device}; milliseconds on the clock, medians of {options.rounds}')
        for pictures in options.pictures:
            row = measure(vlm, pictures, options.rounds, random.Random(pictures))
            rows.append(row)
            for kind in KINDS:
                times = row[kind]
                print(
                    f'{pictures:3d} pictures, {row["tokens"]:6d} tokens, {kind:6s}: cold {times["cold_ms"]:.1f}, '
                    f'warm {times["warm_ms"]:.1f}, again {times["again_ms"]:.1f}: {times["speedup"]:.1f} times as '
                    f'fast; equal {times["equal"]} of {times["rounds"]}',
                    flush=True,
                )
        publish({'precision': vlm.precision, 'device': vlm.device, 'rows': rows}, options.output)
    return 0


if __name__ == '__main__':
    sys.exit(main())
