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

"""The demo's own corner of DDS: one machine, a domain of its own, and shared memory large enough for pictures."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from ament_index_python.packages import get_package_share_directory

from vlm_reuse_node.errors import VlmReuseError

PROFILE = 'config/fastdds_large_pictures.xml'
DOMAINS = range(1, 101)  # above these DDS uses ports that the operating system gives to anybody

_claims: list[socket.socket] = []  # of this process, until it ends


def claim_domain(after: int) -> tuple[int, socket.socket]:
    """Take a domain that no other demo, soak or test on this machine has; it is free again when the socket is closed.

    after: the domain behind which the search begins; 100 is followed by 1. Raises VlmReuseError when all are taken.
    """
    for number in range(len(DOMAINS)):
        domain, claim = DOMAINS[(after + number) % len(DOMAINS)], socket.socket()
        with suppress(OSError):
            claim.bind(('127.0.0.1', 7400 + 250 * domain))  # DDS's own numbers; it uses them for UDP, this is TCP
            return domain, claim
        claim.close()
    raise VlmReuseError(f'The ROS domains {DOMAINS[0]} to {DOMAINS[-1]} are all in use on this machine; end a demo.')


def use_own_domain() -> int:
    """Keep this process and its children apart from every other robot. A DDS profile that is set already stays.

    Without the profile Fast DDS loses most raw 640 x 480 pictures that are sent best effort, as cameras do (the file
    says why); other middlewares do not read it. Returns the domain. Call it before anything of ROS starts.
    """
    domain, claim = claim_domain(os.getpid())
    _claims.append(claim)
    os.environ['ROS_DOMAIN_ID'] = str(domain)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    profile = Path(get_package_share_directory('vlm_reuse_node'), PROFILE)
    if profile.exists():
        os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(profile.resolve()))
    return domain
