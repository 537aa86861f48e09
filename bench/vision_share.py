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

"""What vision costs of a `frame` refresh where there is no vision tower: Gemma 4's encoder-free kind.

The shape is `write_gemma4_unified` of `shapes.py`. In each round two things are computed, in random order: the features
of a picture of 640 x 480, and a state with its slot from ready features (prefill). Written as JSON: cells,
vision_cpu_ms and prefill_cpu_ms (medians of processor times, after a round that does not count), share (vision / both),
low and high (of the rounds).
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
from results import publish
from shapes import parameter_count, write_gemma4_unified
from timing import in_random_order, run

sys.path.append(str(Path(__file__).parents[1] / 'test'))

from tiny_model import picture  # noqa: E402

from vlm_reuse_node.model import loading  # noqa: E402
from vlm_reuse_node.model.vlm import Vlm  # noqa: E402
from vlm_reuse_node.session.encoded_frame import EncodedFrame  # noqa: E402
from vlm_reuse_node.session.state import State  # noqa: E402

OUTPUT = Path(__file__).parents[1] / 'out' / 'bench' / 'vision_share.json'


def measure(vlm: Vlm, rounds: int) -> dict[str, Any]:
    """Return the figures of a model."""
    pixels, grid = vlm.family.prepare(picture(1).rgb)
    features = vlm.family.encode(pixels, grid)
    mx.eval(features)
    encoded = EncodedFrame(picture(1), grid, features)
    state = State(vlm, lambda pictures: vlm.template('', pictures))

    def see() -> None:
        mx.eval(vlm.family.encode(pixels, grid))

    def prefill() -> None:
        state.clear()
        state.append(encoded)

    arms = {name: lambda call=call: run(vlm, call) for name, call in (('vision', see), ('prefill', prefill))}
    runs = in_random_order(arms, rounds, random.Random(0))
    shares = [vision.cpu_ms / (vision.cpu_ms + slot.cpu_ms) for vision, slot in zip(runs['vision'], runs['prefill'])]
    return {
        'parameters': parameter_count(vlm),
        'cells': grid.cells,
        **{f'{name}_cpu_ms': median(each.cpu_ms for each in done) for name, done in runs.items()},
        'share': median(shares),
        'low': min(shares),
        'high': max(shares),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5, help='default: %(default)s')
    parser.add_argument('--tiny', action='store_true', help="the tests' model: the times say nothing")
    parser.add_argument('--output', type=Path, default=OUTPUT, help='default: out/bench/vision_share.json')
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        vlm = loading.load(str(write_gemma4_unified(Path(folder) / 'model', options.tiny)))
        publish(measure(vlm, options.rounds), options.output)
    return 0


if __name__ == '__main__':
    sys.exit(main())
