"""`vlm-reuse-replay`: replay bags, ask along the way, and read on one page whether to trust the engine."""

import argparse
import json
import logging
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import yaml
from tqdm import tqdm

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, VlmReuseError
from vlm_reuse_node.replay import jobs, results
from vlm_reuse_node.replay.arms import ARMS
from vlm_reuse_node.replay.bag import Bag, BagError, Selection
from vlm_reuse_node.replay.compare import compare, comparison_lines
from vlm_reuse_node.replay.evaluate import Job
from vlm_reuse_node.replay.questions import read_questions
from vlm_reuse_node.replay.report import write_report
from vlm_reuse_node.replay.salvage import one_line
from vlm_reuse_node.replay.table import table_lines, verdict_lines

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='vlm-reuse-replay',
        description='Replay ROS 2 bags through a vision-language model that keeps its state, '
        'ask questions along the way, and report speed and paired drift against cold-dense.',
    )
    parser.add_argument('bags', nargs='+', type=Path, metavar='BAG', help='directory of a bag, or an mcap or db3 file')
    parser.add_argument(
        '--questions',
        type=Path,
        action='append',
        default=[],
        metavar='FILE',
        help='YAML (docs/replay.md): one for all bags, or one for each; default: a general set',
    )
    parser.add_argument('--model', default=Config().model, help='tabletop, a model directory or a hub name')
    parser.add_argument('--out', type=Path, default=Path('out/replay'), help='folder for everything that is written')
    parser.add_argument(
        '--topic', action='append', default=[], help='image topic, once for each camera; default: the only one'
    )
    parser.add_argument('--start', type=float, default=0.0, metavar='S', help='seconds from the first picture')
    parser.add_argument('--duration', type=float, default=math.inf, metavar='S', help='seconds to replay')
    parser.add_argument(
        '--rate-limit', type=float, default=0.0, metavar='HZ', help='about the most pictures a second; 0: all'
    )
    parser.add_argument('--arms', default='all', help=f'all, or some of {",".join(ARMS)}; cold and default always run')
    parser.add_argument(
        '--window',
        type=float,
        default=8.0,
        metavar='S',
        help='seconds that the four pictures of low-rate are spread over',
    )
    parser.add_argument(
        '--param',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='a parameter of the node, such as history_frames=4 (README: parameters)',
    )
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='bags at a time, a process each')
    parser.add_argument('--ray', metavar='ADDRESS', help="a Ray cluster, one task a bag ('local' starts one)")
    parser.add_argument('--resume', action='store_true', help='go on where an interrupted run stopped')
    parser.add_argument('--compare', type=Path, metavar='OLD.json', help='results of an earlier run to compare with')
    parser.add_argument('--json', action='store_true', help='print the summary as JSON instead of a table')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Replay. Returns 0 only when every bag was replayed to its end."""
    parser = build_parser()
    args = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    try:
        return _replay(args)
    except ConfigError as err:
        print(f'vlm-reuse-replay: {err}', file=sys.stderr)
        return EXIT_USAGE
    except (VlmReuseError, OSError) as err:
        print(f'vlm-reuse-replay: {err}', file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print('vlm-reuse-replay: Interruption at once; the same command with --resume goes on.', file=sys.stderr)
        return EXIT_INTERRUPTED


class Stop:
    """Ctrl-C: the first one ends the run after the answer that is being given, the second one at once."""

    def __init__(self):
        self.is_set = False

    def __enter__(self):
        """Take SIGINT and SIGTERM."""
        self._before = {each: signal.signal(each, self._take) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        """Give them back."""
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _take(self, number, _):
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
        tqdm.write('Stopping after this answer; what is done is kept (again: at once).', file=sys.stderr)


def _replay(args) -> int:
    started_s, cpu_s = time.perf_counter(), time.process_time()
    old = results.read(args.compare) if args.compare else None
    # 1. What is there to replay?
    todo, failed, seconds = _jobs(args)
    if not todo:
        raise BagError(' '.join(failed.values()))
    # 2. Replay it.
    with (
        Stop() as stop,
        tqdm(
            total=round(seconds, 1),
            unit='s',
            disable=None,
            file=sys.stderr,
            smoothing=0.1,
            desc=todo[0].name if len(todo) == 1 else f'{len(todo)} bags',
        ) as bar,
    ):
        outcomes = _run(args, todo, bar.update, lambda: stop.is_set)
    failed |= {outcome.name: outcome.error for outcome in outcomes if outcome.error}
    for name, why in failed.items():
        print(f'vlm-reuse-replay: {why}', file=sys.stderr)
    # 3. What came of it?
    started = {outcome.name for outcome in outcomes if outcome.started}
    done = [job for job in todo if job.name in started]
    folders = {job.name: job.folder for job in done}
    is_complete = not failed and len(done) == len(todo) and all(outcome.complete for outcome in outcomes)
    found = results.collect(folders, failed, is_complete)
    found['times'] |= results.environment() | {
        'wall_s': time.perf_counter() - started_s,
        'cpu_s': time.process_time() - cpu_s,
    }
    if old:
        found['comparison'] = compare(old, found)
    results.write(found, args.out / 'results.json')
    videos = _place_videos(done, args.out)
    write_report(found, args.out / 'report.html', folders, videos)
    _tell(found, args)
    if stop.is_set:
        print('Interrupted; the same command with --resume goes on.', file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0 if found['complete'] else EXIT_FAILED


def _run(args, todo, progress: Callable, stopped: Callable) -> list[jobs.Outcome]:
    if args.ray:
        return jobs.run_on_ray(todo, args.model, args.ray, progress, stopped)
    if args.jobs > 1 and len(todo) > 1:
        return jobs.run_processes(todo, args.model, args.resume, min(args.jobs, len(todo)), progress, stopped)
    return jobs.run_here(todo, args.model, args.resume, progress, stopped)


def _jobs(args) -> tuple[list[Job], dict[str, str], float]:
    """A job for each bag that can be opened, why others cannot, and the seconds there are to replay."""
    arms, config, selection = _arms(args.arms), _config(args), _selection(args)
    if len(args.questions) not in (0, 1, len(args.bags)):
        raise ConfigError(
            f'There are {len(args.questions)} questions files for {len(args.bags)} bags; expected none, '
            'one for all, or one for each.'
        )
    files = args.questions * (len(args.bags) if len(args.questions) == 1 else 1) or [None] * len(args.bags)
    todo, failed, seconds = [], {}, 0.0
    for path, name, questions in zip(args.bags, _names(args.bags), files):
        try:
            bag = Bag(path, selection)
            bag.close()
            read_questions(questions, tuple(topic.camera for topic in bag.topics))
        except (VlmReuseError, OSError) as error:
            failed[name] = str(error)
            continue
        questions = questions and questions.absolute()
        todo.append(
            Job(path.absolute(), name, args.out / 'bags' / name, arms, selection, questions, config, args.window)
        )
        seconds += max(0.0, min(bag.seconds - args.start, args.duration))
    return todo, failed, seconds


def _names(paths: list[Path]) -> list[str]:
    """A name for each bag: its folder's or file's, with a number where two have the same."""
    names: list[str] = []
    for path in paths:
        name = plain = path.stem if path.is_file() else path.resolve().name
        number = 2
        while name in names:
            name, number = f'{plain}-{number}', number + 1
        names.append(name)
    return names


def _arms(text: str) -> tuple[str, ...]:
    wanted = list(ARMS) if text == 'all' else [name.strip() for name in text.split(',') if name.strip()]
    if unknown := [name for name in wanted if name not in ARMS]:
        raise ConfigError(f'There is no arm {", ".join(unknown)}; expected all, or some of {", ".join(ARMS)}.')
    return tuple(name for name in ARMS if name in wanted)


def _config(args) -> Config:
    values = {'model': args.model}
    for text in args.param:
        name, equals, value = text.partition('=')
        if not equals:
            raise ConfigError(f"--param is '{text}'; expected NAME=VALUE, such as history_frames=4.")
        is_text = any(each.name == name and isinstance(each.default, str) for each in fields(Config))
        try:
            values[name] = value if is_text else yaml.safe_load(value)
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigError(
                f"--param is '{text}', whose value cannot be read: {one_line(error)} Expected a number, true or false."
            ) from error
    return Config().with_values(**values)


def _selection(args) -> Selection:
    for name, low in (('start', 0), ('duration', 1e-9), ('rate_limit', 0), ('window', 1e-3), ('jobs', 1)):
        value = getattr(args, name)
        if math.isnan(value) or value < low:
            expected = f'at least {low}' if low in (0, 1) else 'more than 0'
            raise ConfigError(f'--{name.replace("_", "-")} is {value:g}; expected {expected}.')
    return Selection(tuple(args.topic), args.start, args.duration, args.rate_limit, Config().max_image_pixels)


def _place_videos(todo: list[Job], out: Path) -> list[str]:
    """The overlays beside the report: overlay.mp4, or with several cameras overlay.<bag>.<camera>.mp4."""
    found = [(job, path) for job in todo for path in sorted(job.folder.glob('overlay.*.mp4'))]
    names = []
    for job, path in found:
        camera = path.name.removeprefix('overlay.').removesuffix('.mp4')
        names.append('overlay.mp4' if len(found) == 1 else f'overlay.{job.name}.{camera}.mp4')
        shutil.copyfile(path, out / names[-1])
    return names


def _tell(found: dict, args) -> None:
    if args.json:
        print(json.dumps(results.summary(found)))
        return
    print('\n'.join([*table_lines(found), '', *verdict_lines(found)]))
    for problem in found['problems']:
        print(problem)
    if found['comparison']:
        print('\n'.join(['', *comparison_lines(found['comparison'])]))
    print(f'\nWritten to {args.out}: report.html, results.json, overlay video, and a folder of rows for each bag.')


if __name__ == '__main__':
    sys.exit(main())
