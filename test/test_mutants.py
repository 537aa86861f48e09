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

"""The mutation runner: tests that hold a property kill what breaks it, and the file on the disk stays as it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).parents[1] / 'tools' / 'mutants.py'

SOURCE = '''"""Small sums."""

LIMIT = 3


def total(numbers):
    """Add them."""
    result = 0
    for number in numbers:
        result += number
    return result


def unseen(number):
    return number + 1


def countdown(number):
    while number > 0:
        number -= 1
    return number


def is_small(number: int = 5) -> bool:
    if number > LIMIT:
        raise ValueError(f'{number} is {number - LIMIT} too large.')
    return max(number, number) == number
'''
TESTS = """from hypothesis import given
from hypothesis import strategies as st
from tiny.sums import countdown, is_small, total


@given(st.lists(st.integers()), st.lists(st.integers()))
def test_the_total_of_both_is_the_sum_of_the_totals(one, other):
    assert total(one + other) == total(one) + total(other)
    assert total([7]) == 7


def test_a_countdown_ends_at_nothing():
    assert countdown(3) == 0


def test_small_ones_are_told():
    assert is_small(3) and not is_raised(3) and is_raised(4)


def is_raised(number):
    try:
        is_small(number)
    except ValueError:
        return True
"""
MAX, MIN = 'return max(number, number) == number', 'return min(number, number) == number'


@pytest.fixture
def package(tmp_path):
    """A package with one core file, its tests and the runner's tables."""
    write(tmp_path / 'tiny' / '__init__.py', '')
    write(tmp_path / 'tiny' / 'sums.py', SOURCE)
    write(tmp_path / 'test' / 'test_sums.py', TESTS)
    write(tmp_path / 'tools' / 'mutants.toml', table('tiny/sums.py', 'test/test_sums.py'))
    return tmp_path


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def table(file, tests):
    return f"libraries = []\nslower = 5\nlater_s = 3\n\n[tests]\n'{file}' = ['{tests}']\n"


def equivalent(package, before, after):
    entry = f"[[mutant]]\nfile = 'tiny/sums.py'\nbefore = '{before}'\nafter = '{after}'\nreason = 'Both are equal.'\n"
    write(package / 'tools' / 'mutants_equivalent.toml', entry)


def mutants(package, *arguments):
    """Run the runner there; gives exit code, what it said, and the file's part of its results."""
    command, environment = [sys.executable, RUNNER, *arguments], os.environ | {'OPENBLAS_NUM_THREADS': '1'}
    run = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, timeout=120)
    results = package / 'out' / 'mutants.json'
    return run.returncode, run.stdout + run.stderr, results.exists() and json.loads(results.read_text())['files']


def test_what_a_property_holds_is_killed_and_what_no_test_sees_survives(package):
    equivalent(package, MAX, MIN)
    code, text, files = mutants(package, '--jobs', '2')
    file = files['tiny/sums.py']
    survived = {(each['before'], each['after']) for each in file['survivors']}
    # All that survives is in the function without a test, and a default that no test uses.
    assert survived == {
        ('return number + 1', 'return None'),
        ('return number + 1', 'return number - 1'),
        ('return number + 1', 'return number + 2'),
        ('def is_small(number: int = 5) -> bool:', 'def is_small(number: int = 6) -> bool:'),
    }
    assert all(before in text and after in text for before, after in survived)
    assert (file['tried'] - file['killed'], file['equivalent'], code) == (len(survived), 1, 0)
    # `number -= 1` as `number += 1` has no end.
    assert file['by_time'] >= 1
    assert (package / 'tiny' / 'sums.py').read_text() == SOURCE


def test_a_sample_is_as_large_as_asked(package):
    assert mutants(package, 'sums', '--most', '3')[2]['tiny/sums.py']['tried'] == 3


@pytest.mark.parametrize(
    'before, after, said',
    [('return gone', 'return None', 'is no mutant of tiny/sums.py'), ('LIMIT = 3', 'LIMIT = 4', 'is killed by')],
)
def test_an_equivalent_mutant_that_is_gone_or_killed_is_an_error(package, before, after, said):
    write(package / 'tiny' / 'sums.py', 'LIMIT = 3\n')
    write(package / 'test' / 'test_sums.py', 'import tiny.sums\n\ndef test_one():\n    assert tiny.sums.LIMIT == 3\n')
    equivalent(package, before, after)
    code, text, _ = mutants(package)
    assert code == 1 and said in text and after in text


@pytest.mark.parametrize(
    'file, tests, said',
    [
        ('tiny/sums.py', 'test/test_gone.py', 'test/test_gone.py'),
        ('tiny/gone.py', 'test/test_sums.py', 'tiny/gone.py'),
        ('tiny/__init__.py', 'test/test_other.py', 'do not import it'),
        ('tiny/sums.py', 'test/test_failing.py', 'without any mutant'),
    ],
)
def test_a_table_that_does_not_fit_is_named(package, file, tests, said):
    write(package / 'test' / 'test_other.py', 'def test_nothing():\n    pass\n')
    write(
        package / 'test' / 'test_failing.py', 'import tiny.sums\n\ndef test_one():\n    assert tiny.sums.LIMIT == 4\n'
    )
    write(package / 'tools' / 'mutants.toml', table(file, tests))
    code, text, _ = mutants(package)
    assert code == 1 and said in text


def test_an_unknown_name_is_an_error(package):
    code, text, _ = mutants(package, 'other')
    assert code == 1 and 'other' in text and 'tiny/sums.py' in text


def test_other_files_keep_their_scores_while_their_code_is_the_same(package):
    write(package / 'tiny' / 'other.py', 'def one():\n    return 1\n')
    write(
        package / 'test' / 'test_other.py', 'from tiny.other import one\n\n\ndef test_one():\n    assert one() == 1\n'
    )
    both = table('tiny/sums.py', 'test/test_sums.py') + "'tiny/other.py' = ['test/test_other.py']\n"
    write(package / 'tools' / 'mutants.toml', both)
    mutants(package, 'other')
    _, _, files = mutants(package, 'sums', '--most', '1')
    assert files['tiny/other.py']['tried'] > files['tiny/sums.py']['tried'] == 1
    write(package / 'tiny' / 'other.py', 'def one():\n    return 2 - 1\n')
    _, _, files = mutants(package, 'sums', '--most', '1')
    assert list(files) == ['tiny/sums.py']
