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

"""A stranger's workspace: the package cloned into src, `colcon build` without options, the node started from it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from programs import cmake_arguments

pytest.importorskip('colcon_core', reason='colcon is missing: install it (make setup)')

ROOT = Path(__file__).parents[1]
PACKAGE, INTERFACES = 'vlm_reuse_node', 'vlm_reuse_interfaces'
BUILT = ('setup.py', 'setup.cfg', 'package.xml', 'resource', 'launch', 'config', 'tools', PACKAGE, INTERFACES)


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    """A workspace with nothing in it but the package, as `git clone` leaves it."""
    folder = tmp_path_factory.mktemp('ws')
    for name in BUILT:
        source, target = ROOT / name, folder / 'src' / PACKAGE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(source, target)
    (folder / 'colcon.yaml').write_text(yaml.safe_dump({'build': {'cmake-args': cmake_arguments()}}))
    return folder


def bare_environment(workspace):
    """The environment of a shell in which ROS alone is sourced, not this checkout."""
    left_out = ('PYTHONPATH', 'COLCON_PREFIX_PATH', 'LD_PRELOAD', 'LD_LIBRARY_PATH', '_ROS_WHEELS_BOOTSTRAP_COMPLETE')
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    return environment | {
        'AMENT_PREFIX_PATH': sys.prefix,
        'CMAKE_PREFIX_PATH': sys.prefix,
        'COLCON_DEFAULTS_FILE': str(workspace / 'colcon.yaml'),
        'PATH': os.pathsep.join((str(Path(sys.executable).parent), os.environ['PATH'])),
    }


def run(workspace, command, **environment):
    """Run a bash command in the workspace. Returns its exit code and all output."""
    done = subprocess.run(
        ['bash', '-c', command],
        cwd=workspace,
        env=bare_environment(workspace) | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout


def test_a_plain_build_says_what_is_missing_and_the_command_it_names_helps(workspace):
    """Three builds in one story, because each goes on from the last."""
    code, output = run(workspace, 'colcon build')
    assert code != 0 and f'needs the package {INTERFACES}' in output

    command = re.search(r'^ +(ln -s.*)$', output, flags=re.M)[1]
    code, output = run(workspace, f'{command} && colcon list --names-only && colcon build')
    assert code == 0, output
    assert {PACKAGE, INTERFACES} <= set(output.split())

    # The program itself, as `ros2 run` starts it: the import that failed without the interfaces, and all others.
    start = f'. install/local_setup.bash && install/{PACKAGE}/lib/{PACKAGE}/node --help'
    code, output = run(workspace, start)
    assert code == 0 and 'usage' in output, output

    # Changing to links needs no clean workspace; built interfaces count as there although they are not selected.
    code, output = run(workspace, f'colcon build --symlink-install --packages-select {PACKAGE}')
    assert code == 0, output
    code, output = run(workspace, start)
    assert code == 0, output


def test_links_too_need_the_interfaces(workspace):
    bases = '--build-base other/build --install-base other/install'
    code, output = run(workspace, f'colcon build --symlink-install --base-paths src/{PACKAGE} {bases}')
    assert code != 0 and f'needs the package {INTERFACES}' in output


def test_without_ros_the_package_builds_for_the_replay(workspace):
    command = f'cd src/{PACKAGE} && {sys.executable} setup.py -q build --build-base {workspace}/wheel'
    code, output = run(workspace, command, AMENT_PREFIX_PATH='')
    assert code == 0 and (workspace / 'wheel' / 'lib' / PACKAGE / 'config.py').exists(), output
