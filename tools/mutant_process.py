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

"""One mutant in its own process. The tests run there on a changed source that is never written to disk. Linux only."""

import importlib.util
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType

import hypothesis
import pytest

WAITS = 4  # a mutant hangs when its wall time exceeds this many times its limit of processor time
MOST_BYTES = 16 << 30  # limit of the address space, because an endless loop may allocate memory
PYTEST = '-x', '-q', '-p', 'no:cacheprovider'


@dataclass(frozen=True)
class Trial:
    """The result of the tests.

    processor_s: processor time. by_time: whether the time limit stopped them. was_imported: whether they imported the
    module. failed: names of the failed tests. seconds: duration of each test. output: what pytest printed.
    """

    passed: bool
    processor_s: float
    output: str
    by_time: bool = False
    was_imported: bool = False
    failed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class MutantProcess:
    """Runs pytest with `arguments` in a fork, where the module of `path` has a changed source.

    limit_s: limit of processor time, which does not depend on the load of the machine.
    kills, seconds: how often each test has failed and how long it takes. They determine the order of the tests.
    """

    def __init__(
        self,
        path: Path,
        source: str,
        arguments: list[str],
        limit_s: float,
        kills: Counter,
        seconds: dict[str, float],
    ) -> None:
        """Start the process."""
        self._limit_s = math.ceil(limit_s)
        self._folder = tempfile.TemporaryDirectory(prefix='mutant')
        self._begin = time.monotonic()
        sys.stdout.flush()
        self._pid = os.fork()
        if not self._pid:
            code = 1
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (self._limit_s, self._limit_s))
                code = _run(Path(self._folder.name), path, source, arguments, _Order(kills, seconds))
            except BaseException:  # the child must never continue with the code of its parent
                traceback.print_exc()
            finally:
                os._exit(code)

    def trial(self) -> Trial | None:
        """The result; None while the process runs."""
        pid, status, used = os.wait4(self._pid, os.WNOHANG)
        hangs = not pid and time.monotonic() - self._begin > WAITS * self._limit_s
        if not pid and not hangs:
            return None
        if hangs:
            self.stop()
        notes_file, output = Path(self._folder.name, 'notes.json'), Path(self._folder.name, 'output.txt')
        notes = json.loads(notes_file.read_text()) if notes_file.exists() else {}
        text = output.read_text(errors='replace') if output.exists() else ''
        self._folder.cleanup()
        stopped = hangs or os.waitstatus_to_exitcode(status) in (-signal.SIGXCPU, -signal.SIGKILL)
        return Trial(not hangs and status == 0, used.ru_utime + used.ru_stime, text, stopped, **notes)

    def stop(self) -> None:
        """Kill the process and its children."""
        for kill in (os.killpg, os.kill):  # right after the fork it has no group of its own yet
            try:
                kill(self._pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        os.waitpid(self._pid, 0)


def _run(folder: Path, path: Path, source: str, arguments: list[str], order: '_Order') -> int:
    """Run the tests in this process. Returns pytest's exit code."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    output = os.open(folder / 'output.txt', os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    # Use the same examples for every mutant, without a deadline, without shrinking, and without an example database.
    phases = hypothesis.Phase.explicit, hypothesis.Phase.generate
    hypothesis.settings.register_profile('mutants', derandomize=True, deadline=None, database=None, phases=phases)
    hypothesis.settings.load_profile('mutants')
    # Installed plugins may shuffle or repeat tests, or take three times as long to load as pytest itself.
    os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'
    finder = _Finder(path.absolute(), '.'.join(path.with_suffix('').parts), source)
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, os.getcwd())
    code = int(pytest.main([*PYTEST, f'--basetemp={folder / "tmp"}', *arguments], plugins=[order]))
    notes = {'was_imported': finder.has_found, 'failed': order.failed, 'seconds': order.seconds}
    (folder / 'notes.json').write_text(json.dumps(notes))
    sys.stdout.flush()
    return code


class _Order:
    """A pytest plugin. Quick tests, and tests that failed often, go first. Records failures and durations."""

    def __init__(self, kills: Counter, seconds: dict[str, float]) -> None:
        self._kills, self._known = kills, seconds
        self.failed: list[str] = []
        self.seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort the tests."""
        items.sort(key=lambda item: self._known.get(item.nodeid, 0.0) / (1 + self._kills[item.nodeid]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record failure and duration."""
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when == 'call':
            self.seconds[report.nodeid] = report.duration


class _Finder(MetaPathFinder):
    """Finds one module and loads it with a changed source."""

    def __init__(self, path: Path, module: str, source: str) -> None:
        self._path, self._module, self._source, self.has_found = path, module, source, False

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        """Find this module only."""
        if name != self._module:
            return None
        self.has_found = True
        loader = _Loader(name, str(self._path), self._source)
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)


class _Loader(SourceFileLoader):
    """Compiles a changed source in place of the file's own."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed source, without the file and without its cached bytecode."""
        return compile(self._source, self.path, 'exec', dont_inherit=True)
