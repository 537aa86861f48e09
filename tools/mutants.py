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

"""Mutation testing: make every small change of a core file (mutations.py), and count the changes that fail a test.

python tools/mutants.py [NAME ...], from the root of the package. NAME selects core files of tools/mutants.toml; the
default is all of them. Prints a table and the survivors, and writes out/mutants.json, in which other files keep their
scores while their code is what it was. No mutant is written to disk: this process imports the libraries once, and forks
for every mutant. A mutant that takes too long counts as killed.
"""

import argparse
import importlib
import json
import os
import random
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

from mutant_process import MutantProcess, Trial
from mutations import Mutation, mutations

TABLE = Path('tools/mutants.toml')
EQUIVALENT = Path('tools/mutants_equivalent.toml')
OUT = Path('out/mutants.json')
MOST_S = 1800.0  # limit for the tests of the unchanged code, seconds of processor time
COLUMNS = 'killed', 'tried', 'equivalent', 'by_time', 'seconds'


@dataclass
class Score:
    """The results of one file's mutants.

    tried: all mutants without the equivalent ones. by_time: killed mutants that were stopped by the time limit.
    survivors: line, before and after of each. wrong: errors in the table of equivalent mutants.
    """

    killed: int = 0
    tried: int = 0
    equivalent: int = 0
    by_time: int = 0
    seconds: float = 0.0
    survivors: list[dict] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class TestsFailed(Exception):
    """The tests of a file fail on the unchanged code."""


def score(path: Path, table: dict, equivalent: set[tuple[str, str]], jobs: int, most: int | None) -> Score:
    """Try the mutants of one file, at most `most` of them. equivalent: (before, after) pairs. Raises TestsFailed."""
    begin, found, tests = time.monotonic(), mutations(path.read_text()), table['tests'][str(path)]
    result = Score(wrong=[f'{change} is no mutant of {path} any more.' for change in equivalent - _changes(found)])
    own = _own_trial(path, tests)
    limit_s = table['slower'] * own.processor_s + table['later_s']
    for mutation, trial in trials(path, sample(found, most), tests, jobs, own.seconds, limit_s):
        change = mutation.before, mutation.after
        if change in equivalent:
            result.equivalent += 1
            result.wrong += [] if trial.passed else [f'{change} of {path} is killed by {trial.failed}.']
            continue
        result.tried += 1
        result.killed += not trial.passed
        result.by_time += trial.by_time
        if trial.passed:
            result.survivors.append({'line': mutation.line, 'before': mutation.before, 'after': mutation.after})
        if sys.stderr.isatty():
            print(f'\r{path}: {result.killed} of {result.tried}', end='', file=sys.stderr, flush=True)
    result.survivors.sort(key=lambda each: each['line'])
    result.seconds = round(time.monotonic() - begin, 1)
    return result


def _changes(found: list[Mutation]) -> set[tuple[str, str]]:
    return {(each.before, each.after) for each in found}


def _own_trial(path: Path, tests: list[str]) -> Trial:
    """Run the tests on the unchanged code."""
    unchanged = Mutation(0, '', '', path.read_text())
    ((_, own),) = trials(path, [unchanged], tests, 1, {}, MOST_S)
    if not own.passed:
        raise TestsFailed(f'{own.output}\nThe tests of {path} fail without any mutant: see above.')
    if not own.was_imported:
        raise TestsFailed(f'The tests of {path} do not import it: {tests}. Name others in {TABLE}.')
    return own


def trials(
    path: Path, chosen: list[Mutation], tests: list[str], jobs: int, seconds: dict[str, float], limit_s: float
) -> Iterator[tuple[Mutation, Trial]]:
    """Run the tests on each mutant, `jobs` at a time. Yields the mutants in the order in which they end."""
    waiting, kills = chosen[::-1], Counter[str]()
    running: list[tuple[Mutation, MutantProcess]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutation = waiting.pop()
                running.append((mutation, MutantProcess(path, mutation.source, tests, limit_s, kills, seconds)))
            for mutation, process in list(running):
                if trial := process.trial():
                    running.remove((mutation, process))
                    kills.update(trial.failed)
                    yield mutation, trial
            time.sleep(0.01)
    finally:
        for _, process in running:
            process.stop()


def sample(found: list[Mutation], most: int | None) -> list[Mutation]:
    """Choose `most` mutants, evenly spread, with a fixed seed. Without `most`: all of them."""
    parts, chance = min(most or len(found), len(found)), random.Random(0)
    ends = [len(found) * part // parts for part in range(parts + 1)] if found else []
    return [found[chance.randrange(first, last)] for first, last in pairwise(ends)]


def files(names: list[str], tests: dict[str, list[str]]) -> list[str]:
    """The files in the table with these names ('change', 'change.py' or more of the path). Without names: all files."""
    for path, arguments in tests.items():
        gone = [file for file in (path, *arguments) if file.endswith('.py') and not Path(file).exists()]
        if gone:
            sys.exit(f'{TABLE} names {" and ".join(gone)}, which does not exist; correct the table.')
    wanted = {
        name: [path for path in tests if f'/{path}'.removesuffix('.py').endswith(f'/{name.removesuffix(".py")}')]
        for name in names
    }
    for name, found in wanted.items():
        if not found:
            sys.exit(f'{TABLE} has no file named {name}; it has {", ".join(tests)}.')
    return [path for path in tests if not names or any(path in found for found in wanted.values())]


def write(scores: dict[str, Score]) -> None:
    """Write the scores to OUT, beside those of other files that an earlier run wrote and whose code is the same."""
    earlier = json.loads(OUT.read_text())['files'] if OUT.exists() else {}
    kept = {path: each for path, each in earlier.items() if Path(path).exists() and each.get('code') == code(path)}
    renewed = {path: asdict(each) | {'code': code(path)} for path, each in scores.items()}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({'files': dict(sorted((kept | renewed).items()))}, indent=2) + '\n')


def code(path: str) -> str:
    """Return a digest of a file."""
    return blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()


def import_libraries(names: list[str]) -> None:
    """Import the libraries once for all child processes. They must not start threads: a fork copies only one."""
    for name in names:
        importlib.import_module(name)
    threads = len(os.listdir('/proc/self/task'))
    if threads > 1:
        sys.exit(
            f'The libraries started {threads - 1} threads; expected none. Set OPENBLAS_NUM_THREADS=1, or remove the '
            f'library that starts them from {TABLE}: {", ".join(names)}.'
        )


def table_lines(scores: dict[str, Score]) -> Iterator[str]:
    """A line for each file, then the survivors."""
    yield f'{"file":36}' + ''.join(f'{name:>11}' for name in COLUMNS)
    for path, each in scores.items():
        yield f'{path:36}' + ''.join(f'{getattr(each, name):>11}' for name in COLUMNS)
    for path, each in scores.items():
        yield from (f'\n{path}:{one["line"]}\n  {one["before"]}\n  {one["after"]}' for one in each.survivors)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', metavar='NAME', help='core file, such as change; default: all')
    parser.add_argument('--jobs', type=int, default=1, help='number of mutants at a time (default: %(default)s)')
    parser.add_argument('--most', type=int, metavar='N', help='try at most N mutants of each file, evenly spread')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns 1 when the table of equivalent mutants has errors."""
    arguments = build_parser().parse_args(argv)
    table = tomllib.loads(TABLE.read_text())
    entries = tomllib.loads(EQUIVALENT.read_text()).get('mutant', []) if EQUIVALENT.exists() else []
    chosen, scores = files(arguments.names, table['tests']), {}
    import_libraries(table['libraries'])
    for path in chosen:
        equivalent = {(each['before'], each['after']) for each in entries if each['file'] == path}
        try:
            scores[path] = score(Path(path), table, equivalent, arguments.jobs, arguments.most)
        except TestsFailed as error:
            sys.exit(str(error))
        write(scores)
    print('\n'.join(table_lines(scores)))
    wrong = [sentence for each in scores.values() for sentence in each.wrong]
    if wrong:
        print(f'\n{EQUIVALENT} has errors; remove these entries:', *wrong, sep='\n  ', file=sys.stderr)
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
