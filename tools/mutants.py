"""Do the tests notice a change of the code? Makes every small one (mutations.py) and counts those that fail a test.

python tools/mutants.py [NAME ...], from the root of the package: the core files of tools/mutants.toml with such a name,
all without one. Prints a table and what survived; writes out/mutants.json. A mutant is never written to the disk: this
process imports the libraries once, and forks for every mutant. One that takes too long counts as killed.
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
from itertools import pairwise
from pathlib import Path

from mutant_process import MutantProcess, Trial
from mutations import Mutation, mutations

TABLE = Path('tools/mutants.toml')
EQUIVALENT = Path('tools/mutants_equivalent.toml')
OUT = Path('out/mutants.json')
MOST_S = 1800.0  # of processor time, for the tests of the code itself
COLUMNS = 'killed', 'tried', 'equivalent', 'by_time', 'seconds'


@dataclass
class Score:
    """What became of one file's mutants.

    tried: all but the equivalent ones. by_time: of those killed. survivors: line, before and after of each. wrong: what
    is not as the table of equivalent mutants says.
    """

    killed: int = 0
    tried: int = 0
    equivalent: int = 0
    by_time: int = 0
    seconds: float = 0.0
    survivors: list[dict] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class TestsFailed(Exception):
    """The tests of a file fail without any mutant."""


def score(path: Path, table: dict, equivalent: set[tuple[str, str]], jobs: int, most: int | None) -> Score:
    """Try the mutants of one file, or only `most` of them; equivalent: before and after. Raises TestsFailed."""
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
    """Run the tests on the code as it is."""
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
    """Run the tests on each, so many at a time; gives them as they end."""
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
    """One of every so many, by a fixed seed; all without `most`."""
    parts, chance = min(most or len(found), len(found)), random.Random(0)
    ends = [len(found) * part // parts for part in range(parts + 1)] if found else []
    return [found[chance.randrange(first, last)] for first, last in pairwise(ends)]


def files(names: list[str], tests: dict[str, list[str]]) -> list[str]:
    """The table's files with these names ('change', 'change.py' or more of the path); all without names."""
    for path, arguments in tests.items():
        gone = [each for each in (path, *arguments) if each.endswith('.py') and not Path(each).exists()]
        if gone:
            sys.exit(f'{TABLE} names {" and ".join(gone)}, which does not exist. Write its new name there.')
    wanted = {
        name: [path for path in tests if f'/{path}'.removesuffix('.py').endswith(f'/{name.removesuffix(".py")}')]
        for name in names
    }
    for name, found in wanted.items():
        if not found:
            sys.exit(f'{TABLE} has no file named {name}; it has {", ".join(tests)}.')
    return [path for path in tests if not names or any(path in found for found in wanted.values())]


def import_libraries(names: list[str]) -> None:
    """Import once what every child needs. Nothing here may start a thread: a fork has only the one that forked."""
    for name in names:
        importlib.import_module(name)
    threads = len(os.listdir('/proc/self/task'))
    if threads > 1:
        sys.exit(
            f'{threads - 1} threads run beside this one after the libraries were imported; expected none. Set '
            f'OPENBLAS_NUM_THREADS=1, or take the one that starts them out of {TABLE}: {", ".join(names)}.'
        )


def table_lines(scores: dict[str, Score]) -> Iterator[str]:
    """A line for each file, and what survived."""
    yield f'{"file":36}' + ''.join(f'{name:>11}' for name in COLUMNS)
    for path, each in scores.items():
        yield f'{path:36}' + ''.join(f'{getattr(each, name):>11}' for name in COLUMNS)
    for path, each in scores.items():
        yield from (f'\n{path}:{one["line"]}\n  {one["before"]}\n  {one["after"]}' for one in each.survivors)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', metavar='NAME', help='core files, such as change; default: all')
    parser.add_argument('--jobs', type=int, default=1, help='mutants at a time (default: %(default)s)')
    parser.add_argument('--most', type=int, metavar='N', help='no more than N mutants of a file, evenly chosen')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run it; returns 1 where the table of equivalent mutants is wrong."""
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
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps({'files': {name: asdict(each) for name, each in scores.items()}}, indent=2) + '\n')
    print('\n'.join(table_lines(scores)))
    wrong = [sentence for each in scores.values() for sentence in each.wrong]
    if wrong:
        print(f'\n{EQUIVALENT} is wrong; remove what is gone or killed:', *wrong, sep='\n  ', file=sys.stderr)
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
