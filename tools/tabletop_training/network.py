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

"""The network: transformers' Qwen2.5-VL, its vision tower run on whole batches, and its weights as files."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AttentionInterface, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tabletop_training.pictures import CELLS, COLUMNS, ROWS
from vlm_reuse_node.demo import model_files

WINDOW = 3


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in single precision: on a CPU its backward pass takes half as long again in half precision."""
    groups = module.num_key_value_groups
    with torch.autocast(query.device.type, enabled=False):
        key, value = (part.float().repeat_interleave(groups, dim=1) for part in (key, value))
        out = F.scaled_dot_product_attention(query.float(), key, value, attention_mask, scale=scaling)
    return out.transpose(1, 2).to(query.dtype), None


AttentionInterface.register('single_precision', _attend)


def build(tokenizer: Tokenizer, device: str) -> Qwen2_5_VLForConditionalGeneration:
    """Return transformers' Qwen2.5-VL in the shape of `model_files.model_config`."""
    shape = model_files.model_config(tokenizer)
    vision = dict(shape['vision_config'])
    text = {
        key: shape[key]
        for key in (
            'vocab_size',
            'hidden_size',
            'num_hidden_layers',
            'intermediate_size',
            'num_attention_heads',
            'num_key_value_heads',
            'rms_norm_eps',
            'max_position_embeddings',
            'tie_word_embeddings',
            'eos_token_id',
            'pad_token_id',
            'bos_token_id',
        )
    }
    text['rope_parameters'] = {**shape['rope_scaling'], 'rope_theta': shape['rope_theta']}
    ids = {
        key: shape[key]
        for key in (
            'image_token_id',
            'video_token_id',
            'vision_start_token_id',
            'vision_end_token_id',
            'tie_word_embeddings',
        )
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation='single_precision')
    torch.nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.1)
    return model.to(device)


def patches(pictures: torch.Tensor) -> torch.Tensor:
    """Cut (n, 252, 336, 3) uint8 into (n, 432, 588): patches in the tower's order of windows, cells, patches."""
    mean = torch.tensor(model_files.IMAGE_MEAN, device=pictures.device)
    std = torch.tensor(model_files.IMAGE_STD, device=pictures.device)
    x = (pictures.float() / 255 - mean) / std
    x = x.view(-1, ROWS // WINDOW, WINDOW, 2, 14, COLUMNS // WINDOW, WINDOW, 2, 14, 3)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 9, 4, 8)
    return x.reshape(len(pictures), CELLS * 4, 588)


def window_order(device: torch.device) -> torch.Tensor:
    """Return the raster index of each cell in the tower's order, (108,)."""
    raster = torch.arange(CELLS, device=device).view(ROWS // WINDOW, WINDOW, COLUMNS // WINDOW, WINDOW)
    return raster.permute(0, 2, 1, 3).reshape(-1)


class Tower:
    """The vision tower run on whole batches: same modules as transformers', windows as a batch dimension."""

    def __init__(self, visual: Any) -> None:
        """Take transformers' vision tower, and compute the rotations of its patches."""
        self.visual = visual
        config = visual.config
        device = visual.patch_embed.proj.weight.device
        cells = window_order(device)
        row = (cells // COLUMNS)[:, None] * 2 + torch.tensor([0, 0, 1, 1], device=device)
        column = (cells % COLUMNS)[:, None] * 2 + torch.tensor([0, 1, 0, 1], device=device)
        place = torch.stack([row.reshape(-1), column.reshape(-1)])
        width = config.hidden_size // config.num_heads
        frequency = 1.0 / (10000.0 ** (torch.arange(0, width // 2, 2, device=device).float() / (width // 2)))
        angle = torch.cat([place[0][:, None] * frequency, place[1][:, None] * frequency], -1)
        angle = torch.cat([angle, angle], -1)
        self.cos = angle.cos()
        self.sin = angle.sin()
        self.order = cells

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Turn (n, 252, 336, 3) uint8 into (n, 108, hidden) features, cells in raster order."""
        visual = self.visual
        weight = visual.patch_embed.proj.weight.sum(2).flatten(1)  # a picture fills both steps of the temporal patch
        x = patches(pictures) @ weight.T
        for index, block in enumerate(visual.blocks):
            full = index in visual.config.fullatt_block_indexes
            x = x + self._attend(block.attn, block.norm1(x), 1 if full else CELLS // WINDOW**2)
            x = x + block.mlp(block.norm2(x))
        features = visual.merger(x.reshape(-1, x.shape[-1])).view(len(pictures), CELLS, -1)
        return torch.empty_like(features).index_copy_(1, self.order, features)

    def _attend(self, attention: Any, x: torch.Tensor, windows: int) -> torch.Tensor:
        n, length, width = x.shape
        qkv = attention.qkv(x).view(n, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        q = self._turn(qkv[0])
        k = self._turn(qkv[1])
        v = qkv[2]
        heads = q.shape[1]
        size = q.shape[3]

        def split(t: torch.Tensor) -> torch.Tensor:
            t = t.view(n, heads, windows, length // windows, size).transpose(1, 2)
            return t.reshape(n * windows, heads, -1, size)

        out = F.scaled_dot_product_attention(split(q), split(k), split(v).to(q.dtype))
        out = out.view(n, windows, heads, length // windows, size).permute(0, 1, 3, 2, 4).reshape(n, length, width)
        return attention.proj(out)

    def _turn(self, t: torch.Tensor) -> torch.Tensor:
        """Rotate queries or keys by their patches' places."""
        half = t.shape[-1] // 2
        turned = torch.cat([-t[..., half:], t[..., :half]], -1)
        return (t * self.cos + turned * self.sin).to(t.dtype)


def export(model: Qwen2_5_VLForConditionalGeneration, directory: Path) -> None:
    """Write the model directory: weights in half precision under transformers' names, and the files beside them."""
    model_files.write_model_files(directory)
    weights = {
        name: value.detach().to('cpu', torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if name != 'lm_head.weight'
    }
    names = {name.removeprefix('model.').replace('language_model.', 'model.'): value for name, value in weights.items()}
    save_file(names, directory / 'model.safetensors.part', metadata={'format': 'pt'})
    os.replace(directory / 'model.safetensors.part', directory / 'model.safetensors')


def read_weights(directory: Path) -> dict:
    """The weights of a model directory under the names of this training's model, in single precision."""

    def name_here(name: str) -> str:
        return f'model.{name}' if name.startswith('visual.') else name.replace('model.', 'model.language_model.', 1)

    stored = load_file(directory / 'model.safetensors')
    return {name_here(name): value.float() for name, value in stored.items()}
