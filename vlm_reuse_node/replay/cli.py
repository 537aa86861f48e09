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

"""`vlm-reuse-replay`: replay bags, ask along the way, and read on one page whether to trust the engine."""

import argparse
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_reuse_node.errors import ConfigError, VlmReuseError
from vlm_reuse_node.plain_text import log_to_stderr, print_error, print_rows
from vlm_reuse_node.replay import results
from vlm_reuse_node.replay.compare import compare, comparison_lines
from vlm_reuse_node.replay.conclusion import conclusion
from vlm_reuse_node.replay.job import Job, JobOutcome
from vlm_reuse_node.replay.journal import NAME as ROWS
from vlm_reuse_node.replay.options import build_parser, keep_results, make_folder, make_jobs, names_of
from vlm_reuse_node.replay.report import write_nothing, write_report
from vlm_reuse_node.replay.sessions import session_lines
from vlm_reuse_node.replay.stop_request import StopRequest
from vlm_reuse_node.replay.storage.channel import BagError
from vlm_reuse_node.replay.table import table_lines, verdict_lines
from vlm_reuse_node.replay.verdict import is_answered
from vlm_reuse_node.replay.video_file import SUFFIX
from vlm_reuse_node.terminal import progress

NAME = 'vlm-reuse-replay'
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Replay. Returns 0 only when every bag was replayed to its end, and a question was answered."""
    args = build_parser().parse_intermixed_args(argv)
    log_to_stderr(logging.WARNING)
    try:
        return _replay(args)
    except ConfigError as error:
        print_error(NAME, error)
        return EXIT_USAGE
    except (VlmReuseError, OSError) as error:
        print_error(NAME, error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print_error(NAME, 'Stopped at once; the same command with --resume goes on.')
        return EXIT_INTERRUPTED


def _replay(args: argparse.Namespace) -> int:
    started_s = time.perf_counter()
    started_cpu_s = time.process_time()
    old = results.read(args.compare) if args.compare else None
    # 1. What is there to replay?
    _keep_earlier(args)
    todo, failed, seconds = make_jobs(args)
    if not todo:
        raise BagError(' '.join(failed.values()))
    make_folder(args.out)
    # 2. Replay it.
    name = todo[0].name if len(todo) == 1 else f'{len(todo)} bags'
    stopping = 'Stopping after this answer; what is done is kept (again: at once).'
    with StopRequest(stopping) as stop, progress(round(seconds, 1), name, 's') as bar:
        outcomes = _run(args, todo, bar.update, lambda: stop.is_set)
    failed |= {outcome.name: outcome.error for outcome in outcomes if outcome.error}
    for why in failed.values():
        print_error(NAME, why)
    # 3. What came of it?
    started = {outcome.name for outcome in outcomes if outcome.started}
    done = [job for job in todo if job.name in started]
    folders = {job.name: job.folder for job in done}
    is_complete = not failed and len(done) == len(todo) and all(outcome.complete for outcome in outcomes)
    try:
        found = results.collect(folders, failed, is_complete)
    except results.NothingAnsweredError as error:
        write_nothing(str(error), error.lines, args.out / 'report.html')
        raise
    found['times'] |= results.environment() | {
        'wall_s': time.perf_counter() - started_s,
        'cpu_s': time.process_time() - started_cpu_s,
    }
    if old:
        found['comparison'] = compare(old, found)
    results.write(found, args.out / 'results.json')
    videos = _place_videos(done, args.out)
    write_report(found, args.out / 'report.html', folders, videos)
    _print(found, args)
    if stop.is_set:
        print('Interrupted; the same command with --resume goes on.', file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0 if found['complete'] and is_answered(found) else EXIT_FAILED


def _keep_earlier(args: argparse.Namespace) -> None:
    """Refuse to replace an earlier run, a stopped one too, unless all of it is resumed or it may be replaced."""
    if args.resume:
        _check_resumes_all(args)
        return
    choices = 'go on with --resume, '
    keep_results(args, 'results.json', choices)
    for rows in sorted(args.out.glob(f'bags/*/{ROWS}')):
        keep_results(args, str(rows.relative_to(args.out)), choices)


def _check_resumes_all(args: argparse.Namespace) -> None:
    """Raise ConfigError where --out has rows of bags that are not given: they would drop out of the report."""
    if args.overwrite:
        return
    missing = sorted({rows.parent.name for rows in args.out.glob(f'bags/*/{ROWS}')} - set(names_of(args.bags)))
    if missing:
        raise ConfigError(
            f"'{args.out}' has rows of {', '.join(missing)} too, and --resume goes on with all bags of a run. Name "
            'every bag of the run or another --out, or give --overwrite to go on without these.'
        )


def _run(
    args: argparse.Namespace, todo: list[Job], progress: Callable[[float], Any], stopped: Callable[[], bool]
) -> list[JobOutcome]:
    # Imported here because they load MLX, which --help and a wrong option need not wait for.
    from vlm_reuse_node.replay import jobs, ray_jobs

    if args.ray:
        return ray_jobs.run_on_ray(todo, args.ray, progress, stopped)
    if args.jobs > 1 and len(todo) > 1:
        return jobs.run_processes(todo, args.resume, min(args.jobs, len(todo)), progress, stopped)
    return jobs.run_here(todo, args.resume, progress, stopped)


def _place_videos(todo: list[Job], out: Path) -> list[str]:
    """Copy the overlays beside the report: overlay.webm, or where there are several overlay.<bag>.<camera>.webm."""
    found = [(job, path) for job in todo for path in sorted(job.folder.glob(f'overlay.*{SUFFIX}'))]
    names = []
    for job, path in found:
        camera = path.name.removeprefix('overlay.').removesuffix(SUFFIX)
        name = f'overlay{SUFFIX}' if len(found) == 1 else f'overlay.{job.name}.{camera}{SUFFIX}'
        shutil.copyfile(path, out / name)
        names.append(name)
    return names


def _print(found: dict, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(results.summary(found)))
        return
    print_rows(
        [
            conclusion(found),
            '',
            *table_lines(found),
            '',
            *verdict_lines(found),
            *found['problems'],
            *session_lines(found['times']['sessions']),
            *found['notes'],
        ]
    )
    if found['comparison']:
        print_rows(['', *comparison_lines(found['comparison'])])
    print_rows(
        ['', f'Written to {args.out}: report.html, results.json, overlay video, and a folder of rows for each bag.']
    )


if __name__ == '__main__':
    sys.exit(main())
