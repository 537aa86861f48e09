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

"""What a changed picture costs at each level of the refresh ladder, and how often the cheap level changes answers.

Costs: one `SceneSession.observe` on the Qwen2.5-VL and the Qwen3.5 of `shapes.py` (random weights), in a window of 8
pictures of 640 x 480, whose newest is changed again and again in one rectangle of cells, in the middle. A picture has
54 cells, as in the other benchmarks, or as many as the model itself cuts 640 x 480 into: 391 for Qwen2.5-VL and 300 for
Qwen3.5. There is one row for each share of changed cells:

reuse   the picture before once more, with a camera's noise: the change detector alone (the same in every row)
patch   refresh_policy patch, without its limits; at 0 % this is reuse, and at 100 %, a cut, it is frame
frame   the default policy; forced at 0 %, where it would do nothing
full    image processor, vision tower and prefill of all 8 pictures

Medians in milliseconds. Beside each `_ms` there is a `_cpu_ms`, the processor time of this program, which other
programs of the machine do not disturb. changed_percent was asked for, cells were changed. change_ms_p95 is the worst
situation that `change.py` measures. For Qwen3.5, whose patches cost more the higher the change is in the picture, the
rectangle is at other positions too: `positions.py`. The drift table is that of `drift.py`.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import change
import cv2
import drift
import mlx.core as mx
import numpy as np
import positions
from rectangle_camera import RectangleCamera
from results import publish
from shapes import parameter_count, write_qwen2_5_vl, write_qwen3_5
from timing import wall_and_cpu_ms
from tiny_model import picture
from tqdm import tqdm

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import loading
from vlm_reuse_node.model.families.base import Grid
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.scene_session import SceneSession

OUTPUT = Path(__file__).parents[1] / 'out' / 'bench' / 'refresh.json'
SHAPES: dict[str, Callable[[Path, bool], Path]] = {
    'qwen2_5_vl 54 cells': write_qwen2_5_vl,
    'qwen2_5_vl 391 cells': partial(write_qwen2_5_vl, cells=400),
    'qwen3_5 300 cells': partial(write_qwen3_5, cells=300),
}
PERCENT = (0, 1, 2, 5, 10, 25, 50, 100)
FRAMES = 8
SIZE = (480, 640)
WINDOW = Config(history_frames=FRAMES - 1, keyframe_interval_s=0.0)
# Only the share of changed cells decides the level: no keyframe becomes due, and no change counts as a cut or a pan.
STEADY = WINDOW.with_values(keyframe_interval_s=3600.0, max_cell_age_s=3600.0)
PATCH = STEADY.with_values(refresh_policy='patch', max_patches=1000, max_patch_share=1.0)
NOISE = 3.0
DETECTIONS = 200
COLUMNS = (
    ('shape', 22),
    ('changed', 8),
    ('reuse', 7),
    ('patch', 8),
    ('frame', 8),
    ('full', 9),
    ('full/patch', 11),
    ('frame/patch', 12),
)


def noisy(first: Frame, count: int) -> list[Frame]:
    """Return the same picture again and again, with a camera's noise."""
    rng = np.random.default_rng(0)
    return [
        Frame(
            np.clip(first.rgb + rng.normal(0, NOISE, first.rgb.shape), 0, 255).astype(np.uint8), first.stamp_ns + number
        )
        for number in range(1, count + 1)
    ]


def window(vlm: Vlm, config: Config) -> SceneSession:
    """Return a session that keeps 8 pictures; the newest can be patched if the policy is patch."""
    session = SceneSession(vlm, config.with_values(keyframe_interval_s=0.0))
    for number in range(FRAMES):
        session.observe(picture(number, float(number), SIZE))
    session.config = config
    state: Any = session._refresher.state
    if len(state.frames) != FRAMES:
        raise RuntimeError(f'The session keeps {len(state.frames)} pictures; expected {FRAMES}.')
    return session


def observe_ms(
    session: SceneSession, frames: Iterable[Frame], level: Level, force: bool = False
) -> tuple[float, float]:
    """Return median wall and processor times of an observation. The first, which plans kernels, does not count.

    Raises RuntimeError when a frame is refreshed at another level than this.
    """
    times = []
    refreshes: list[Refresh] = []
    for frame in frames:
        times.append(wall_and_cpu_ms(lambda: refreshes.append(session.observe(frame, force=force))))
        if refreshes[-1].level != level:
            raise RuntimeError(f'{refreshes[-1].level}, {refreshes[-1].reason}; expected {level}')
    return _medians(times[1:])


def full_ms(vlm: Vlm, repeats: int) -> tuple[float, float]:
    """Return median wall and processor times of everything from nothing."""
    frames = [picture(number, float(number), SIZE) for number in range(FRAMES)]

    def build() -> None:
        states.build(vlm, partial(vlm.template, ''), (EncodedFrame.see(vlm, frame) for frame in frames))

    return _medians([wall_and_cpu_ms(build) for _ in range(repeats)])


def measure(vlm: Vlm, patching: SceneSession, whole: SceneSession, repeats: int) -> Iterator[dict]:
    """Yield one row for each share of changed cells. patching, whole: sessions with policies PATCH and STEADY."""
    state: Any = whole.state
    grid = state.live.grid
    first: Any = whole.newest
    full = full_ms(vlm, max(1, repeats // 2))
    for percent in PERCENT:
        cells = -(-percent * grid.cells // 100)
        # The picture without the change, newer than what both sessions have seen.
        newest_ns = max(session.newest.stamp_ns for session in (patching, whole) if session.newest)
        first = replace(first, stamp_ns=1 + newest_ns)
        for session in (patching, whole):
            session.observe(first, force=True)
        reuse = observe_ms(whole, noisy(first, repeats + 1), Level.REUSE)
        level = Level.PATCH if cells < grid.cells else Level.FRAME
        patch = observe_ms(patching, changed(first, grid, cells, repeats + 1), level) if cells else reuse
        frame = observe_ms(whole, changed(first, grid, cells, repeats + 1), Level.FRAME, force=not cells)
        times = {'reuse': reuse, 'patch': patch, 'frame': frame, 'full': full}
        yield {
            'changed_percent': percent,
            'cells': cells,
            'cells_total': grid.cells,
            **{f'{name}_ms': wall for name, (wall, _) in times.items()},
            **{f'{name}_cpu_ms': cpu for name, (_, cpu) in times.items()},
        }


def changed(first: Frame, grid: Grid, cells: int, count: int) -> list[Frame]:
    """Return frames in each of which so many cells differ from the frame before."""
    camera = RectangleCamera(first, grid, cells)
    return [camera.frame() for _ in range(count)]


def _medians(times: Iterable[tuple[float, float]]) -> tuple[float, float]:
    wall_ms, cpu_ms = zip(*times)
    return median(wall_ms), median(cpu_ms)


def line(row: dict) -> str:
    """Return one row of the table: processor times."""
    times = [row[f'{name}_cpu_ms'] for name in ('reuse', 'patch', 'frame', 'full')]
    values = (
        row['shape'],
        f'{row["changed_percent"]} %',
        *(f'{ms:.1f}' for ms in times),
        f'{times[3] / times[1]:.1f}',
        f'{times[2] / times[1]:.2f}',
    )
    return '  '.join(str(value).rjust(width) for value, (_, width) in zip(values, COLUMNS))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=('cost', 'drift'), help='one of the two parts; default: both')
    parser.add_argument('--repeats', type=int, default=5, help='runs of each; default: %(default)s')
    parser.add_argument('--positions', type=int, default=13, help='of the changed rectangle; default: %(default)s')
    parser.add_argument('--tiny', action='store_true', help="the tests' model: to try this program, not to time")
    parser.add_argument(
        '--sequences', type=int, default=drift.SEQUENCES, help='tabletops of the drift table; default: %(default)s'
    )
    parser.add_argument('--model', default='tabletop', help='of the drift table; default: %(default)s')
    parser.add_argument(
        '--output', type=Path, default=OUTPUT, help='the JSON file, drift.json goes beside it; default: %(default)s'
    )
    return parser


def costs(arguments: argparse.Namespace) -> dict:
    """Measure and print the cost table."""
    cv2.setNumThreads(1)
    result: dict[str, Any] = {
        'rows': [],
        'positions': [],
        'parameters': {},
        'change_ms_p95': change.worst(change.measure_times(DETECTIONS)),
    }
    print('processor milliseconds\n' + '  '.join(title.rjust(width) for title, width in COLUMNS), flush=True)
    for name, write in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            vlm = loading.load(str(write(Path(folder) / 'model', arguments.tiny)))
        result['parameters'][name] = parameter_count(vlm)
        patching, whole = window(vlm, PATCH), window(vlm, STEADY)
        for row in measure(vlm, patching, whole, arguments.repeats):
            result['rows'].append({'shape': name, **row})
            print(line(result['rows'][-1]), flush=True)
        state: Any = patching.state
        if state.restart(0):
            at = [*tqdm(positions.measure(vlm, patching, whole, arguments.positions), total=arguments.positions)]
            result['positions'] += [{'shape': name, **row} for row in at]
            print(positions.summary(at), flush=True)
        mx.clear_cache()
    for name, ms in result['change_ms_p95'].items():
        print(f'change detector, {name}: {ms:.1f} processor ms (p95)')
    return result


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables and the JSON lines, and write the files."""
    arguments = build_parser().parse_args(argv)
    if arguments.only != 'drift':
        publish(costs(arguments), arguments.output)
    if arguments.only != 'cost':
        publish(drift.measure(arguments.model, arguments.sequences), arguments.output.with_name('drift.json'))
    return 0


if __name__ == '__main__':
    sys.exit(main())
