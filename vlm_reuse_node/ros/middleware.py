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

"""Large pictures and the middleware: on which way they travel, and what keeps them from getting lost there."""

import os
from collections.abc import Sequence
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from rclpy.utilities import get_rmw_implementation_identifier

PROFILE = 'config/fastdds_large_pictures.xml'
# With one of these the user has chosen how Fast DDS sends.
CHOSEN = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_BUILTIN_TRANSPORTS')
DEFAULT_PROFILE = 'DEFAULT_FASTDDS_PROFILES.xml'  # Fast DDS reads it from the current directory
RECEIVE_LIMIT = Path('/proc/sys/net/core/rmem_max')
# A receive buffer of this size holds a 1080p picture in part, and the rest has time to come.
ENOUGH_BYTES = 4_194_304
HOST_BYTES = 4  # of an endpoint's id: the vendor and the host
SHARED_MEMORY, UDP = 'shared memory', 'UDP'


def make_room() -> None:
    """Let Fast DDS send large pictures from this process, which are the overlays, unless the user has chosen a way.

    Call it before ROS starts. It does not help to receive: the room is in the memory of the sender.
    """
    if any(name in os.environ for name in CHOSEN) or Path(DEFAULT_PROFILE).exists():
        return
    try:
        profile = Path(get_package_share_directory('vlm_reuse_node')) / PROFILE
    except PackageNotFoundError:
        return
    if profile.is_file():
        os.environ['FASTDDS_DEFAULT_PROFILES_FILE'] = str(profile)


def way_of(publisher: Sequence[int], own: Sequence[int]) -> str:
    """Name the middleware and the transport of a publisher's pictures, such as 'Fast DDS, shared memory'.

    publisher, own: the ids of both endpoints; empty: not known.
    """
    rmw = get_rmw_implementation_identifier()
    if 'fastrtps' in rmw:
        is_local = bool(own) and list(publisher[:HOST_BYTES]) == list(own[:HOST_BYTES])
        only_udp = os.environ.get('FASTDDS_BUILTIN_TRANSPORTS', '').startswith('UDP')
        return f'Fast DDS, {SHARED_MEMORY if is_local and not only_udp else UDP}'
    return f'Cyclone DDS, {UDP}' if 'cyclone' in rmw else rmw


def remedy(way: str) -> str:
    """Say what to do about pictures that are lost on this way."""
    smaller = 'or send compressed pictures (image_transport:=compressed)'
    if way.endswith(SHARED_MEMORY):
        return (
            "The sender's shared memory is too small for them: start the camera's process with "
            f'FASTDDS_DEFAULT_PROFILES_FILE=<share of vlm_reuse_node>/{PROFILE}, {smaller}.'
        )
    if way.endswith(UDP):
        return f'Raise the socket buffers of both hosts (sysctl net.core.rmem_max{_limit()}), {smaller}.'
    return f'Give the middleware larger buffers, {smaller}.'


def _limit() -> str:
    try:
        size = int(RECEIVE_LIMIT.read_text())
    except (OSError, ValueError):
        return ''
    return f', here only {size // 1024} KB' if size < ENOUGH_BYTES else f', here {size // 1024} KB'
