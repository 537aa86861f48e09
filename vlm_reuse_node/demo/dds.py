"""The demo's own corner of DDS: one machine, a domain of its own, and shared memory large enough for pictures."""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory

PROFILE = 'config/fastdds_large_pictures.xml'


def use_own_domain() -> int:
    """Keep this process and its children apart from every other robot. A DDS profile that is set already stays.

    Without the profile Fast DDS loses most raw 640 x 480 pictures that are sent best effort, as cameras do (the file
    says why); other middlewares do not read it. Returns the domain, 1 to 100. Call it before anything of ROS starts.
    """
    domain = 1 + os.getpid() % 100
    os.environ['ROS_DOMAIN_ID'] = str(domain)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    profile = Path(get_package_share_directory('vlm_reuse_node'), PROFILE)
    if profile.exists():
        os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(profile.resolve()))
    return domain
