"""The ROS side of the node. Only this folder and the live part of the demo import rclpy."""
