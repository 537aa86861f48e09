"""Pictures and change: NumPy and OpenCV only."""
