"""Qwen3.5: the cells and the vision tower of Qwen3-VL without DeepStack; gated-delta layers between full attention.

Source: mlx_vlm/models/qwen3_5 and qwen3_5_moe. A gated-delta layer has no positions; its cache is a whole state that
every call replaces by a new one, so it cannot be cut back, only put back. One sequence needs no mask.
Off Metal, mlx-vlm has one method for a call of one token and another one for more, whose roundings differ most where
heads forget fast. That is noise between chunk grids (`model/noise.py`); on one grid warm and cold are equal.
"""

from vlm_reuse_node.model.families.qwen_vision import QwenFamily


class Family(QwenFamily):
    """See `families.base.Family`."""

    def encode(self, pixels, grid):
        """Vision features, mx (cells, hidden)."""
        features, _ = self._vision(pixels, self.patches(grid))
        return features
