"""What a changed picture costs at each level of the refresh ladder, and what the cheap one costs in truth.

Costs: one `SceneSession.observe` from the picture on, on the Qwen2.5-VL of `shapes.py` (random weights), in a window of
8 pictures of 640 x 480, the newest one changed again and again in one rectangle of cells. Two sizes of its pictures: 54
cells, as in the other benchmarks, and 391, as Qwen2.5-VL itself cuts 640 x 480. One row a share of changed cells:

reuse   the picture before once more, with a camera's noise: the change detector (the same in every row)
patch   refresh_policy patch, without its limits; at 0 % it is reuse, at 100 % the scene was cut, which is frame
frame   the default policy; at 0 % forced, because nothing would be done
full    image processor, vision tower and prefill of all 8 pictures

Medians in milliseconds; beside each `_ms` a `_cpu_ms`, the processor time of this program, which does not see what else
the machine runs. changed_percent is what was asked for, cells what was changed. change_ms_p95 is what `change.py`
measures, the worst of its situations. The drift table is `drift.py`'s.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import change
import cv2
import drift
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from results import publish
from shapes import write_qwen2_5_vl
from tiny_model import picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import loading
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.scene_session import SceneSession

OUTPUT = Path(__file__).parents[1] / 'out' / 'bench' / 'refresh.json'
SHAPES = {'qwen2_5_vl 54 cells': write_qwen2_5_vl, 'qwen2_5_vl 391 cells': partial(write_qwen2_5_vl, cells=400)}
PERCENT = 0, 1, 2, 5, 10, 25, 50, 100
FRAMES, SIZE = 8, (480, 640)
WINDOW = Config(history_frames=FRAMES - 1, keyframe_interval_s=0.0)
# Nothing but the share of changed cells decides: no keyframe is due, no change is a cut or a pan to be computed whole.
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


def timed(call) -> tuple[float, float]:
    """Milliseconds of a call: of the clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


class Camera:
    """Frames one after the other in which one rectangle of cells is another than before."""

    def __init__(self, first: Frame, grid, cells: int):
        """Change so many cells, a rectangle as square as it can be, in the middle of the picture."""
        self._first, self._count = first, 0
        columns = min(grid.columns, int(np.ceil(np.sqrt(cells * grid.columns / grid.rows)))) if cells else 0
        rows = -(-cells // columns) if cells else 0
        top, left = (grid.rows - rows) // 2, (grid.columns - columns) // 2
        self._mask = np.zeros(grid, np.uint8)
        for number in range(cells):
            self._mask[top + number // columns, left + number % columns] = 1

    @property
    def cells(self) -> int:
        """How many are changed."""
        return int(self._mask.sum())

    def frame(self) -> Frame:
        """The next one."""
        self._count += 1
        height, width = SIZE
        rows, columns = self._mask.shape
        # Whole pixels inside the cells: what lies on an edge would change the neighbour too.
        inside = np.zeros((rows * 4, columns * 4), np.uint8)
        inside[1::4, 1::4] = inside[2::4, 2::4] = inside[1::4, 2::4] = inside[2::4, 1::4] = self._mask
        where = cv2.resize(inside, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
        rgb = self._first.rgb.copy()
        if self._count % 2:
            rgb[where] ^= 0x80
        return Frame(rgb, self._first.stamp_ns + 1_000_000 * self._count)


def noisy(first: Frame, count: int) -> list[Frame]:
    """The same picture again and again, as a camera sends it."""
    rng = np.random.default_rng(0)
    return [
        Frame(
            np.clip(first.rgb + rng.normal(0, NOISE, first.rgb.shape), 0, 255).astype(np.uint8), first.stamp_ns + number
        )
        for number in range(1, count + 1)
    ]


def window(vlm, config: Config) -> SceneSession:
    """A session that keeps 8 pictures, the newest of which can be patched where the policy is to."""
    session = SceneSession(vlm, config.with_values(keyframe_interval_s=0.0))
    for number in range(FRAMES):
        session.observe(picture(number, float(number), SIZE))
    session.config = config
    assert len(session._refresher.state.frames) == FRAMES
    return session


def observed(session: SceneSession, frames, level: Level, repeats: int, force: bool = False) -> tuple[float, float]:
    """Medians of one observation at this level. The first, which plans kernels, does not count."""
    times = []
    for frame in frames(repeats + 1):
        refresh = []
        times.append(timed(lambda: refresh.append(session.observe(frame, force=force))))
        if refresh[0].level != level:
            raise RuntimeError(f'{refresh[0].level}, {refresh[0].reason}; expected {level}')
    return tuple(median(each) for each in zip(*times[1:]))


def full(vlm, repeats: int) -> tuple[float, float]:
    """Medians of everything from nothing."""
    frames = [picture(number, float(number), SIZE) for number in range(FRAMES)]

    def build():
        states.build(vlm, partial(vlm.template, ''), (EncodedFrame.see(vlm, frame) for frame in frames))

    return tuple(median(each) for each in zip(*[timed(build) for _ in range(repeats)]))


def measure(vlm, repeats: int):
    """Yield one row for each share of changed cells."""
    patching, whole = window(vlm, PATCH), window(vlm, STEADY)
    grid, first = whole._refresher.state.live.grid, whole.newest
    full_ms = full(vlm, max(1, repeats // 2))
    for percent in PERCENT:
        cells = -(-percent * grid.cells // 100)

        def frames(count):
            camera = Camera(first, grid, cells)
            return [camera.frame() for _ in range(count)]

        # The picture without the change.
        first = replace(first, stamp_ns=1 + max(patching.newest.stamp_ns, whole.newest.stamp_ns))
        for session in (patching, whole):
            session.observe(first, force=True)
        reuse = observed(whole, partial(noisy, first), Level.REUSE, repeats)
        level = Level.PATCH if cells < grid.cells else Level.FRAME
        patch = observed(patching, frames, level, repeats) if cells else reuse
        frame = observed(whole, frames, Level.FRAME, repeats, force=not cells)
        times = {'reuse': reuse, 'patch': patch, 'frame': frame, 'full': full_ms}
        yield {
            'changed_percent': percent,
            'cells': cells,
            'cells_total': grid.cells,
            **{f'{name}_ms': wall for name, (wall, _) in times.items()},
            **{f'{name}_cpu_ms': cpu for name, (_, cpu) in times.items()},
        }


def line(row: dict) -> str:
    """One row of the table, processor times."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=('cost', 'drift'), help='one of the two parts; default: both')
    parser.add_argument('--repeats', type=int, default=5, help='runs of each; default: %(default)s')
    parser.add_argument('--tiny', action='store_true', help="the tests' model: to try this program, not to time")
    parser.add_argument(
        '--sequences', type=int, default=drift.SEQUENCES, help='tabletops of the drift table; default: %(default)s'
    )
    parser.add_argument('--model', default='tabletop', help='of the drift table; default: %(default)s')
    parser.add_argument(
        '--output', type=Path, default=OUTPUT, help='the JSON file, drift.json goes beside it; default: %(default)s'
    )
    return parser


def costs(arguments) -> dict:
    """Measure and print the cost table."""
    cv2.setNumThreads(1)
    result = {'rows': [], 'parameters': {}, 'change_ms_p95': change.worst(change.measure_times(DETECTIONS))}
    print('processor milliseconds\n' + '  '.join(title.rjust(width) for title, width in COLUMNS), flush=True)
    for name, write in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            vlm = loading.load(str(write(Path(folder) / 'model', arguments.tiny)))
        result['parameters'][name] = sum(array.size for _, array in tree_flatten(vlm._model.parameters()))
        for row in measure(vlm, arguments.repeats):
            result['rows'].append({'shape': name, **row})
            print(line(result['rows'][-1]), flush=True)
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
