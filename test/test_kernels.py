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

"""The numeric tests once more, in processes of their own, under other BLAS kernels: bounds must hold on any machine."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blas import kernel, main

TESTS = Path(__file__).parent
# OpenBLAS's name of a kernel -> what the processor needs to run it.
KERNELS = {
    'Haswell': {'avx2', 'fma'},
    'SkylakeX': {'avx512f', 'avx512bw', 'avx512dq', 'avx512vl'},
    'Nehalem': {'sse4_2'},
}
PROCESSOR = Path('/proc/cpuinfo')

pytestmark = pytest.mark.skipif(not kernel(), reason='no OpenBLAS is preloaded (LD_PRELOAD; tools/env.sh does it)')


def test_nothing_is_run_under_another_kernel_than_the_expected_one():
    assert main(['Other', '--no-such-option']) == f"The kernel is '{kernel()}'; expected 'Other'."


def run(expected, files, environment):
    """Run the numeric tests of these files where the kernel is the expected one: what pytest says."""
    # Settings of this pytest are not those of the other; a processor's kernel may be set or not.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(('PYTEST_', 'OPENBLAS_CORE'))}
    program = f'import sys; sys.path.append({str(TESTS)!r}); from blas import main; sys.exit(main(sys.argv[1:]))'
    options = '-q', '-m', 'numeric', '-p', 'no:cacheprovider', '-p', 'no:randomly'
    done = subprocess.run(
        [sys.executable, '-c', program, expected, *options, *map(str, files)],
        cwd=TESTS.parent,
        env={name: value for name, value in (inherited | environment).items() if value is not None},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f'under {expected or "the BLAS of MLX"}:\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}'
    return done.stdout


def missing(name):
    """What this processor lacks to run a kernel."""
    flags = PROCESSOR.read_text().split() if PROCESSOR.exists() else []
    return sorted(KERNELS[name].difference(flags))


@pytest.fixture(scope='module')
def runs():
    """All runs, two at a time: the future of what pytest says, by the kernel's name; '': the BLAS that MLX brings."""
    others = [path for path in sorted(TESTS.glob('test_*.py')) if path != Path(__file__)]
    files = [path for path in others if 'pytest.mark.numeric' in path.read_text()]
    with ThreadPoolExecutor(2) as pool:
        yield {'': pool.submit(run, '', [TESTS / 'test_noise.py'], {'LD_PRELOAD': None})} | {
            name: pool.submit(run, name, files, {'OPENBLAS_CORETYPE': name}) for name in KERNELS if not missing(name)
        }


@pytest.mark.parametrize('name', KERNELS)
def test_the_bounds_hold_under_another_kernel(name, runs):
    if flags := missing(name):
        pytest.skip(f'this processor has no {", ".join(flags)}')
    assert ' passed' in runs[name].result()


def test_the_bounds_hold_under_the_blas_that_mlx_brings(runs):
    """A slow one whose sums come in the same order in calls of any size: only moving the input shows its rounding."""
    assert ' passed' in runs[''].result()
