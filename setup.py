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

import os
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop

package_name = 'vlm_reuse_node'
interfaces = 'vlm_reuse_interfaces'


def require_interfaces() -> None:
    """Stop the build when ROS is sourced and the interfaces are not there: without them the node dies when it starts.

    colcon only warns of a missing dependency, and its crawl ends at this folder's package.xml, above the interfaces.
    """
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '')
    index = Path('share', 'ament_index', 'resource_index', 'packages', interfaces)
    if not prefixes or any((prefix / index).exists() for prefix in map(Path, prefixes.split(os.pathsep))):
        return
    folder = Path(__file__).resolve().parent
    raise SystemExit(
        f'\n{package_name} needs the package {interfaces}, which is not built. It lies in this folder, and colcon does '
        'not look for packages inside of packages. Link it beside this folder, then build again:\n\n'
        f'  ln -sfn {folder.name}/{interfaces} {folder.parent}/{interfaces}\n\n'
        f'If this folder is the workspace itself: colcon build --base-paths . {interfaces}\n'
    )


class BuildPython(build_py):
    """Part of `setup.py build`, `install` and `bdist_wheel`."""

    def run(self) -> None:
        """Build, if the interfaces are there."""
        require_interfaces()
        super().run()


class Develop(develop):
    """What `colcon build --symlink-install` calls, also to undo an earlier one."""

    def run(self) -> None:
        """Link, if the interfaces are there."""
        if not self.uninstall:
            require_interfaces()
        super().run()


setup(
    name=package_name,
    version='0.1.0',
    packages=find_packages(include=[package_name, f'{package_name}.*']),
    package_data={package_name: ['*.html', '**/*.html', 'demo/tabletop_model/*', 'replay/*.json', 'replay/*.yaml']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{package_name}']),
        (f'share/{package_name}', ['package.xml']),
        (f'share/{package_name}/launch', glob('launch/*.launch.py')),
        (f'share/{package_name}/config', glob('config/*')),
        (f'share/{package_name}/examples', glob('examples/*')),
        # ROS keeps console scripts out of PATH (setup.cfg), for ros2 run; this one is called by its name.
        ('bin', ['tools/vlm-reuse-replay']),
    ],
    install_requires=['setuptools'],
    extras_require={'ray': ['ray[default]'], 'video': ['av']},
    zip_safe=False,
    cmdclass={'build_py': BuildPython, 'develop': Develop},
    maintainer='vlm_reuse_node maintainers',
    maintainer_email='maintainers@vlm-reuse-node.dev',
    description='Answers questions about live cameras with a vision-language model '
    'whose working state is kept and refreshed, not recomputed.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'node = vlm_reuse_node.ros.process:main',
            'demo = vlm_reuse_node.demo.run:main',
            'make_bag = vlm_reuse_node.demo.bag:main',
            'replay = vlm_reuse_node.replay.cli:main',
            'ask = vlm_reuse_node.ask.cli:main',
            'calibrate = vlm_reuse_node.calibrate.cli:main',
            'check = vlm_reuse_node.check.cli:main',
        ],
    },
)
