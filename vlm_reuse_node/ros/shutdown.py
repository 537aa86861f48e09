"""What may still be published while ROS ends."""

from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.node import Node


@contextmanager
def while_ros_runs(node: Node) -> Iterator[None]:
    """Publish something from any thread: that ROS was told to stop meanwhile is no failure."""
    try:
        yield
    except RuntimeError:
        if node.context.ok():
            raise
