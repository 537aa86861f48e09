"""ROS at the edge: the only folder that imports rclpy, beside the live part of the demo."""
