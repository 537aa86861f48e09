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

"""What a Mac gets by pixi is what the package needs; nothing here can run it, so it is held against what is tested."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
PIXI = tomllib.loads((ROOT / 'pixi.toml').read_text())
DISTRIBUTIONS = ('kilted', 'jazzy', 'lyrical')
LOOPBACK = ROOT / 'config' / 'cyclonedds_loopback.xml'

# Packages of rosdep or PyPI that conda-forge calls otherwise.
CONDA_NAMES = {'pil': 'pillow', 'yaml': 'pyyaml', 'opencv': 'py-opencv', 'matplotlib': 'matplotlib-base'}
# Come with mlx-vlm, or lint this checkout.
NOT_NAMED = {'huggingface_hub', 'llguidance', 'tokenizers', 'ruff', 'mypy', 'pytest-randomly', 'pytest-xdist'}


def conda_name(rosdep_key, distribution):
    """Name the conda package of a key of package.xml."""
    if not rosdep_key.startswith('python3-'):
        return f'ros-{distribution}-' + rosdep_key.replace('_', '-')
    name = rosdep_key.removeprefix('python3-')
    return CONDA_NAMES.get(name, name)


def declared_keys():
    """List what both packages need, to build and to run."""
    manifests = [ElementTree.parse(folder / 'package.xml') for folder in (ROOT, ROOT / 'vlm_reuse_interfaces')]
    keys = {
        element.text
        for manifest in manifests
        for tag in ('depend', 'exec_depend', 'buildtool_depend')
        for element in manifest.iter(tag)
    }
    return keys - {'vlm_reuse_interfaces'}


def asked_wheels():
    """Map each wheel of requirements.in to its version there, '' for any."""
    lines = (ROOT / 'requirements.in').read_text().splitlines()
    asked = [re.fullmatch(r'([A-Za-z0-9_.-]+)(?:\[\w+\])?(?:==(\S+))?.*', line) for line in lines if line[:1].isalnum()]
    return {match[1]: match[2] or '' for match in asked}


def locked_wheels():
    """Map each wheel of requirements.txt to its version."""
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    return dict(line.split('==') for line in lines if '==' in line)


@pytest.mark.parametrize('distribution', DISTRIBUTIONS)
def test_everything_that_the_packages_declare_comes_along(distribution):
    provided = {*PIXI['dependencies'], *PIXI['feature'][distribution]['dependencies']}
    assert {conda_name(key, distribution) for key in declared_keys()} <= provided


def test_the_distributions_differ_in_their_name_alone():
    names = [
        {name.replace(f'ros-{each}-', 'ros-') for name in PIXI['feature'][each]['dependencies']} - {'python'}
        for each in DISTRIBUTIONS
    ]
    assert names[0] == names[1] == names[2]
    assert all(f'robostack-{each}' in PIXI['feature'][each]['channels'][0] for each in DISTRIBUTIONS)


def test_each_distribution_has_folders_of_its_own_and_an_environment_for_the_m5():
    scripts = {each: PIXI['feature'][each]['activation'] for each in DISTRIBUTIONS}
    assert all(each['scripts'] == [f'install{each["env"]["SUFFIX"]}/setup.bash'] for each in scripts.values())
    assert len({each['env']['SUFFIX'] for each in scripts.values()}) == len(DISTRIBUTIONS)
    assert {tuple(features) for features in PIXI['environments'].values()} == {
        (each, *more) for each in DISTRIBUTIONS for more in ((), ('m5',))
    }
    assert PIXI['feature']['m5']['system-requirements']['macos'] > PIXI['system-requirements']['macos']


def test_the_build_names_python_as_robostack_says():
    words = PIXI['tasks']['build']['cmd'].split()
    names = ('Python_EXECUTABLE', 'Python3_EXECUTABLE', 'PYTHON_EXECUTABLE')
    assert {f'-D{name}=$CONDA_PREFIX/bin/python' for name in names} <= set(words)


def test_the_opencv_task_refuses_the_wheel(tmp_path):
    """The wheel's cv2 is one library for every Python; conda's is not."""
    program = PIXI['tasks']['opencv']['cmd'].split('python -c ')[1].strip().strip('"')
    (tmp_path / 'cv2').mkdir()
    package = tmp_path / 'cv2' / '__init__.py'

    def accepts(version):
        package.write_text(f"__version__ = '{version}'")
        return subprocess.run([sys.executable, '-c', program], cwd=tmp_path, capture_output=True).returncode == 0

    assert accepts('4.12.0') and not accepts('5.0.0')
    (tmp_path / 'cv2' / 'cv2.abi3.so').touch()
    assert not accepts('4.12.0')


def test_every_wheel_asked_for_comes_along():
    wheels = {name for name in asked_wheels() if not name.startswith(('ros-', 'cv-bridge'))} - NOT_NAMED
    provided = {*PIXI['dependencies'], *PIXI['pypi-dependencies']}
    assert {CONDA_NAMES.get(name, name) for name in wheels} <= provided


def test_the_pins_are_those_that_are_tested_here():
    pins = {name: version for name, version in PIXI['pypi-dependencies'].items() if version.startswith('==')}
    assert {'mlx', 'mlx-vlm', 'rosbags', 'mcap'} <= set(pins)
    assert pins == {name: f'=={locked_wheels()[name]}' for name in pins}
    assert all(version in ('', pins[name][2:]) for name, version in asked_wheels().items() if name in pins)


def test_opencv_5_comes_neither_way():
    """With it cv_bridge refuses every colour picture."""
    assert PIXI['dependencies']['py-opencv'] == PIXI['pypi-dependencies']['opencv-python'] == '<5'


def test_the_middleware_is_cyclone_on_the_loopback_interface_with_multicast():
    environment = PIXI['activation']['env']
    assert environment['RMW_IMPLEMENTATION'] == 'rmw_cyclonedds_cpp'
    assert 'ros-kilted-rmw-cyclonedds-cpp' in PIXI['feature']['kilted']['dependencies']
    assert environment['CYCLONEDDS_URI'] == f'file://$PIXI_PROJECT_ROOT/{LOOPBACK.relative_to(ROOT)}'
    interfaces = [element for element in ElementTree.parse(LOOPBACK).iter() if element.tag.endswith('NetworkInterface')]
    assert [element.attrib for element in interfaces] == [{'name': 'lo0', 'multicast': 'true'}]


def test_tasks_name_what_there_is():
    tasks = {name: task['cmd'].split() for name, task in PIXI['tasks'].items()}
    package, launch_file = tasks['node'][2:]
    assert package == PIXI['workspace']['name'] and (ROOT / 'launch' / launch_file).exists()
    folders = tasks['build'][tasks['build'].index('--base-paths') + 1 : tasks['build'].index('--build-base')]
    assert [folder for folder in folders if not (ROOT / folder / 'package.xml').exists()] == []
