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

"""Start the node for one robot, or together with a bag.

The launch file has no defaults of its own: without an argument, the parameter comes from params_file or the node.
"""

from pathlib import Path
from typing import Any

from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit, OnProcessIO
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription

PACKAGE = 'vlm_reuse_node'
READY = b'vlm_reuse_node: ready'  # printed on stderr at every log level


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments. `ros2 launch vlm_reuse_node vlm_reuse.launch.py --show-args` prints them."""
    params_file = PathJoinSubstitution([FindPackageShare(PACKAGE), 'config', 'vlm_reuse.yaml'])
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'model',
                default_value='',
                description="'tabletop', a model directory in mlx-vlm's format or a hub name; empty: from params_file",
            ),
            DeclareLaunchArgument(
                'cameras',
                default_value='',
                description='names, separated by commas; each subscribes to <name>/image_raw; empty: from params_file',
            ),
            DeclareLaunchArgument(
                'image_topic',
                default_value='',
                description='topic of the first camera; requires cameras; empty: <name>/image_raw',
            ),
            DeclareLaunchArgument(
                'params_file',
                default_value=params_file,
                description="YAML file of parameters that differ from the node's defaults",
            ),
            DeclareLaunchArgument(
                'namespace', default_value='', description='namespace of the node and its topics, one for each robot'
            ),
            DeclareLaunchArgument(
                'log_level',
                default_value='info',
                choices=['debug', 'info', 'warn', 'error', 'fatal'],
                description='lowest severity that is logged',
            ),
            DeclareLaunchArgument(
                'use_sim_time',
                default_value='auto',
                choices=['auto', 'true', 'false'],
                description='use the time of /clock; auto: true when a bag is played, else from params_file',
            ),
            DeclareLaunchArgument(
                'autostart',
                default_value='auto',
                choices=['auto', 'true', 'false'],
                description='true: load the model and take pictures at the start; false: wait for a lifecycle manager '
                "or 'ros2 lifecycle set'; auto: from params_file",
            ),
            DeclareLaunchArgument(
                'bag',
                default_value='',
                description='bag to play, with its clock, as soon as the node is ready; empty: none',
            ),
            OpaqueFunction(function=bring_up),
        ]
    )


def bring_up(context: LaunchContext) -> list:
    """Create the node from the given arguments, and a player when there is a bag."""
    given = {
        name: LaunchConfiguration(name).perform(context)
        for name in (
            'model',
            'cameras',
            'image_topic',
            'params_file',
            'namespace',
            'log_level',
            'use_sim_time',
            'autostart',
            'bag',
        )
    }
    check_params_file(given)
    node = Node(
        package=PACKAGE,
        executable='node',
        name=PACKAGE,
        namespace=given['namespace'],
        output='screen',
        parameters=[given['params_file'], *parameters_of(given)],
        remappings=remappings_of(given),
        ros_arguments=['--log-level', given['log_level']],
    )
    end_together = RegisterEventHandler(OnProcessExit(target_action=node, on_exit=end_with_node))
    return [node, end_together, *([play_when_ready(node, given['bag'])] if given['bag'] else [])]


def end_with_node(event: Any, context: LaunchContext) -> list[Shutdown] | None:
    """End the launch when the node ends, with exit code 1 when the node has failed.

    `ros2 launch` returns an error only for an exception, so a failure raises one. launch logs it and ends the rest.
    """
    if context.is_shutdown:
        return None
    if event.returncode:
        raise RuntimeError(f'the node has ended with exit code {event.returncode}; its last lines say why')
    return [Shutdown(reason='the node has ended')]


def check_params_file(given: dict[str, str]) -> None:
    """Refuse a parameter file that does not exist. The launch system alone only warns, and the node gets defaults."""
    if not Path(given['params_file']).is_file():
        raise RuntimeError(f"params_file is '{given['params_file']}', which is no file; expected a YAML file.")


def parameters_of(given: dict[str, str]) -> list[dict]:
    """Return the parameters that the arguments set."""
    parameters: dict[str, str | bool | list[str]] = {}
    if given['model']:
        parameters['model'] = given['model']
    if given['cameras']:
        parameters['cameras'] = camera_names(given)
    if given['use_sim_time'] != 'auto' or given['bag']:
        parameters['use_sim_time'] = given['use_sim_time'] != 'false'
    if given['autostart'] != 'auto':
        parameters['autostart'] = given['autostart'] == 'true'
    return [parameters] if parameters else []


def remappings_of(given: dict[str, str]) -> list[tuple[str, str]]:
    """Return the remapping of the first camera's topic, if image_topic is given."""
    if not given['image_topic']:
        return []
    if not given['cameras']:
        raise RuntimeError('image_topic is given without cameras; expected the name of its camera in cameras.')
    return [(f'{camera_names(given)[0]}/image_raw', given['image_topic'])]


def camera_names(given: dict[str, str]) -> list[str]:
    """Split a list such as 'front, rear', with or without brackets."""
    return [name.strip() for name in given['cameras'].strip('[] ').split(',')]


def play_when_ready(node: Node, bag: str) -> RegisterEventHandler:
    """Play the bag when the node has become active for the first time, so no picture is missed."""
    player = ExecuteProcess(cmd=['ros2', 'bag', 'play', bag, '--clock'], output='screen')
    actions: list[ExecuteProcess] = []
    said = bytearray()

    def on_output(event: Any) -> list[ExecuteProcess] | None:
        said.extend(event.text)  # a line may arrive in several parts
        if actions or READY not in said:
            del said[: -len(READY)]
            return None
        actions.append(player)
        return actions

    return RegisterEventHandler(OnProcessIO(target_action=node, on_stderr=on_output))
