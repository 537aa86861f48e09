"""Publishing while ROS shuts down."""

from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.node import Node


@contextmanager
def while_ros_runs(node: Node) -> Iterator[None]:
    """Publish from any thread. An error of publishing is ignored when ROS was shut down in the meantime."""
    try:
        yield
    except RuntimeError:
        if node.context.ok():
            raise
