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

"""The stages of the node's life cycle."""

from enum import StrEnum


class Stage(StrEnum):
    """A stage of the node's life cycle."""

    UNCONFIGURED = 'unconfigured'
    CONFIGURING = 'configuring'
    INACTIVE = 'inactive'
    ACTIVE = 'active'
    CLEANING_UP = 'cleaning up'
    FINALIZED = 'finalized'


def remedy_of(stage: Stage, name: str, progress: str = '') -> str:
    """A sentence that says why a node is not active, and what to do.

    name: its full name. progress: how far it has got with what it is doing; '' if that is not known.
    """
    if stage in (Stage.CONFIGURING, Stage.CLEANING_UP):
        return f'The node is {stage}{f" ({progress})" if progress else ""}; wait until it has finished.'
    if stage is Stage.FINALIZED:
        return 'The node was shut down; start its process again.'
    transition = 'activate' if stage is Stage.INACTIVE else 'configure'
    return f"The node is {stage}; run 'ros2 lifecycle set {name} {transition}'."
