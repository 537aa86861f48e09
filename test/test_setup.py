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

"""The set-up says what it does and, when it cannot, why in one sentence. Python, pip and df are stood in for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAILED, USAGE, NO_NETWORK, NO_SPACE = 1, 2, 3, 4
# Makes an environment that is a copy of itself; its pip says what the test wants, and fails.
PYTHON = """#!/bin/bash
case "$*" in
  *'-m venv '*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
  *'-m pip install'*) cat "$PIP_SAYS"; exit 1 ;;
  *-V*) echo Python 3.12.0 ;;
  *realpath*) echo "$0" ;;
esac
"""
DF = """#!/bin/bash
echo 'Filesystem 1048576-blocks Used Available Capacity Mounted on'
echo "disk 100000 1 $FREE_MB 1% /"
"""


@pytest.fixture
def set_up(tmp_path):
    """Run the set-up in a folder of its own. Returns its exit code and what it said."""
    (tmp_path / 'tools').mkdir()
    shutil.copy(ROOT / 'tools' / 'setup_env.sh', tmp_path / 'tools')
    for lock in ROOT.glob('requirements*.txt'):
        shutil.copy(lock, tmp_path)
    for name, text in (('python', PYTHON), ('df', DF)):
        (tmp_path / 'bin' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'bin' / name).write_text(text)
        (tmp_path / 'bin' / name).chmod(0o755)

    def run(*arguments, pip_says='', free_mb=10_000, **environment):
        (tmp_path / 'pip_says').write_text(pip_says)
        environment = os.environ | {
            'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
            'PYTHON': str(tmp_path / 'bin' / 'python'),
            'PIP_SAYS': str(tmp_path / 'pip_says'),
            'FREE_MB': str(free_mb),
            'ROS': 'kilted',
            **environment,
        }
        done = subprocess.run(
            [str(tmp_path / 'tools' / 'setup_env.sh'), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout

    return run


def test_it_says_what_it_needs_and_how_far_it_is(set_up):
    collected = ''.join(f'Collecting wheel{number}==1\n' for number in range(60))
    _, said = set_up(pip_says=collected + 'Installing collected packages: all\n')
    assert 'MB to fetch' in said and 'MB of disk' in said and 'minutes' in said
    assert '  25 of ' in said and '  50 of ' in said and 'unpacking' in said
    assert 'Collecting' not in said


@pytest.mark.parametrize(
    'pip_says, code, named',
    [
        ('NewConnectionError: [Errno 111]\nERROR: No matching distribution found for numpy', NO_NETWORK, 'no network'),
        ('NameResolutionError\nERROR: No matching distribution found for numpy', NO_NETWORK, 'no network'),
        ('ERROR: Could not install packages due to an OSError: No space left on device', NO_SPACE, 'no space'),
        ('ERROR: No matching distribution found for numpy', FAILED, 'No matching distribution found for numpy'),
    ],
)
def test_what_stops_pip_is_told_in_one_sentence(set_up, pip_says, code, named):
    exit_code, said = set_up(pip_says=pip_says + '\n')
    assert exit_code == code, said
    last = said.splitlines()[-1]
    assert last.startswith('setup: ') and named in last and said.count('setup: ') == 2


def test_too_little_space_is_told_before_anything_is_done(set_up, tmp_path):
    exit_code, said = set_up(free_mb=500)
    assert exit_code == NO_SPACE and 'has 500 MB left' in said and not (tmp_path / '.venv').exists()


@pytest.mark.parametrize(
    'arguments, environment, named',
    [
        (('everything',), {}, "unknown argument 'everything'"),
        ((), {'ROS': 'foxy'}, "unknown ROS 'foxy'"),
        ((), {'PYTHON': '/no/such/python'}, '/no/such/python'),
    ],
)
def test_wrong_usage_has_a_code_of_its_own(set_up, arguments, environment, named):
    exit_code, said = set_up(*arguments, **environment)
    assert exit_code == USAGE and named in said and 'run the same command again' not in said, said


def test_jazzy_has_an_environment_of_its_own(set_up, tmp_path):
    set_up(pip_says='ERROR: stop here\n', ROS='jazzy')
    assert (tmp_path / '.venv-jazzy').exists() and not (tmp_path / '.venv').exists()


def test_a_shell_of_one_distribution_can_go_on_with_the_other(tmp_path):
    tmp_path /= 'a folder (1) [x] +'
    (tmp_path / 'tools').mkdir(parents=True)
    shutil.copy(ROOT / 'tools' / 'env.sh', tmp_path / 'tools')
    names = ('PATH', 'PYTHONPATH', 'LD_LIBRARY_PATH', 'COLCON_PREFIX_PATH')
    for install in ('install', 'install-jazzy'):
        (tmp_path / install).mkdir()
        lines = (f'export {name}="{tmp_path}/{install}/x${{{name}:+:}}${name}"' for name in names)
        (tmp_path / install / 'local_setup.bash').write_text('\n'.join(lines))
    command = '. tools/env.sh; ROS=jazzy; . tools/env.sh; ' + '; '.join(f'echo "${name}"' for name in names)
    before = {name: '/usr/bin:/bin' if name == 'PATH' else '/mine' for name in names}
    said = subprocess.check_output(['bash', '-euc', command], cwd=tmp_path, env=before, text=True).splitlines()
    for name, value in zip(names, said, strict=True):
        ours = ['install-jazzy/x', '.venv-jazzy/bin'] if name == 'PATH' else ['install-jazzy/x']
        assert value == ':'.join([*(f'{tmp_path}/{entry}' for entry in ours), before[name]])


def test_a_shell_that_this_environments_python_started_can_use_it_again():
    pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
    command = f". '{ROOT}/tools/env.sh'; '{sys.executable}' -c 'import rclpy; rclpy.init(); print(7)'"
    assert subprocess.check_output(['bash', '-euc', command], text=True).strip() == '7'


def test_without_a_compiler_it_stops_before_anything_is_fetched(set_up, tmp_path):
    for tool in ('bash', 'env', 'dirname', 'flock', 'cat'):
        (tmp_path / 'bin' / tool).symlink_to(shutil.which(tool))
    code, said = set_up(PATH=str(tmp_path / 'bin'))
    assert code == 1 and 'there is no C++ compiler' in said and 'apt-get install g++' in said
    assert not (tmp_path / '.venv').exists()
