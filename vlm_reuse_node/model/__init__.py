"""The model: the only folder that imports MLX, beside the session's arrays."""
