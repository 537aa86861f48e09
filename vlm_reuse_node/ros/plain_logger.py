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

"""A ROS logger whose every message is one harmless line."""

from functools import cached_property
from pathlib import Path
from typing import Any

from rclpy.impl import rcutils_logger
from rclpy.lifecycle import LifecycleNode

from vlm_reuse_node.plain_text import one_line

# rclpy tells callers apart by their real path, also where `colcon build --symlink-install` installs links: each has a
# severity, `once` and `throttle_duration_sec` of its own. This file calls for others.
rcutils_logger._internal_callers.append(str(Path(__file__).resolve()))


class PlainLogger(rcutils_logger.RcutilsLogger):
    """Writes what a node's logger writes. Text from outside cannot begin a line of its own, nor control a terminal."""

    def log(self, message: str, severity: int, *name: Any, **filters: Any) -> bool:
        """Log a message as one line; see `RcutilsLogger.log`, which takes no name on Jazzy."""
        return super().log(one_line(message), severity, *name, **filters)


class PlainLogNode(LifecycleNode):
    """A lifecycle node with such a logger."""

    def get_logger(self) -> PlainLogger:
        """The node's logger. Every message becomes one line."""
        return self._plain_logger

    @cached_property
    def _plain_logger(self) -> PlainLogger:
        return PlainLogger(super().get_logger().name)
