"""Qwen2.5-VL: square cells of 28 px, M-RoPE in three blocks, a flat KV cache.

Source: mlx_vlm/models/qwen2_5_vl.
"""

from vlm_reuse_node.families.qwen_vision import QwenFamily


class Family(QwenFamily):
    """See `families.base.Family`."""

    takes_mask = True

    def encode(self, pixels, grid):
        """Vision features, mx (cells, hidden)."""
        return self._vision(pixels, self.patches(grid), output_hidden_states=False)
