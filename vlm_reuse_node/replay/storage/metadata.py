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

"""metadata.yaml of a rosbag2 directory, as far as it is there: reading needs none of it."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Metadata:
    """What the recorder wrote about a bag. files: names in the order of recording. messages: how many, by topic."""

    files: tuple[str, ...] = ()
    messages: dict[str, int] = field(default_factory=dict)


def read_metadata(folder: Path) -> Metadata:
    """Return what a directory's metadata.yaml says; nothing where there is none, or where it cannot be read."""
    try:
        content = yaml.safe_load((folder / 'metadata.yaml').read_text(encoding='utf-8'))
        about = content['rosbag2_bagfile_information']
        files = tuple(Path(file).name for file in about['relative_file_paths'])
        topics = about['topics_with_message_count']
        return Metadata(files, {topic['topic_metadata']['name']: int(topic['message_count']) for topic in topics})
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return Metadata()
