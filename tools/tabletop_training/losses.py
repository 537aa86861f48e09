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

"""The losses of the training: answers, what lies in each cell, and where things are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from tabletop_training.pictures import CELLS, CHANGES, COLUMNS, ROWS, STORY_FRAMES, Things, cell_labels
from tabletop_training.prompts import KINDS, PackedPrompts
from vlm_reuse_node.demo import tabletop, words

Tally = tuple[str, float, int]  # kind, right, asked


class Guide(torch.nn.Module):
    """Linear heads that read from hidden states what answers need; they are dropped after the training.

    read, centre: after the second layer, each cell's picture, row and column, and whether it has the centre of a thing.
        Without them the language model takes thousands of steps to notice that positions tell where a cell is, and
        counts cells instead of things.
    find: after the third layer, for each mention of a thing its row and column. Without it comparing two things is not
        learnt, because both must be found before finding either one helps.
    compare: after the fourth layer, at the second of two things, where the first one lies from there, and whether that
        is what is asked.
    change: after the third and the fourth layer, for each cell of a later picture what changed there since the first.
        Without it this is hardly learnt, because a cell must find its place and its thing in the first picture before
        any answer improves.
    told: share of changed cells of the last batch for which the change was right.
    """

    _CHANGE = {
        'what': len(CHANGES),
        'way': len(words.DIRECTIONS),
        'colour': len(tabletop.COLOURS),
        'shape': len(tabletop.SHAPES),
    }

    def __init__(self, language: torch.nn.Module) -> None:
        """Make the heads for a language model, and listen to its layers."""
        super().__init__()
        width = language.config.hidden_size
        self.read = torch.nn.Linear(width, ROWS + COLUMNS + STORY_FRAMES)
        self.find = torch.nn.Linear(width, ROWS + COLUMNS)
        self.centre = torch.nn.Linear(width, 1)
        self.compare = torch.nn.Linear(width, 8)
        self.change = torch.nn.ModuleDict(
            {str(layer): torch.nn.Linear(width, sum(self._CHANGE.values())) for layer in (2, 3)}
        )
        self.hidden: dict[int, torch.Tensor] = {}
        self.told = 0.0
        for layer in (1, 2, 3):
            language.layers[layer].register_forward_hook(self._catcher(layer))

    def _catcher(self, layer: int) -> Callable[..., None]:
        def catch(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            self.hidden[layer] = output[0] if isinstance(output, tuple) else output

        return catch

    def loss(
        self,
        is_cell: torch.Tensor,
        mentions: torch.Tensor,
        relations: torch.Tensor,
        changes: torch.Tensor,
        centres: torch.Tensor,
    ) -> torch.Tensor:
        """Return the sum of the mean cross-entropies, and set `told`.

        is_cell: (batch, length) bool, frames * 108 in every row. mentions, relations: of `PackedPrompts`.
        changes: (batch, frames, 108, 4) int, see `change_labels`. centres: (batch, frames, 108) float, 1 where the
        centre of a thing is.
        """
        cells = torch.arange(int(is_cell.sum()), device=is_cell.device)
        scores = self._scores(self.read, self.hidden[1][is_cell])
        loss = self._place_loss(scores, cells % CELLS)
        loss = loss + F.cross_entropy(scores[:, ROWS + COLUMNS :], cells // CELLS % changes.shape[1])
        centre = self._scores(self.centre, self.hidden[1][is_cell])[:, 0]
        loss = loss + F.binary_cross_entropy_with_logits(centre, centres.flatten(), pos_weight=torch.tensor(5.0))
        named = mentions >= 0
        if named.any():
            loss = loss + self._place_loss(self._scores(self.find, self.hidden[2][named]), mentions[named])
        second = relations >= 0
        if second.any():
            scores = self._scores(self.compare, self.hidden[3][second])
            target = relations[second]
            loss = loss + sum(
                F.cross_entropy(part, label)
                for part, label in zip(scores.split((3, 3, 2), -1), (target // 3 % 3, target % 3, target // 9))
            )
        if (changes >= 0).any():
            loss = loss + sum(
                self._change_loss(head, self.hidden[int(layer)][is_cell], changes.flatten(0, 2))
                for layer, head in self.change.items()
            )
        return loss

    def _change_loss(self, head: torch.nn.Module, hidden: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        for scores, target in zip(self._scores(head, hidden).split(list(self._CHANGE.values()), -1), changes.T):
            if (target >= 0).any():
                each = F.cross_entropy(scores, target, reduction='none', ignore_index=-100)
                # Most cells are empty and stay so; the others count for as much together.
                plain = target == 0
                telling = target > 0
                if scores.shape[-1] != len(CHANGES):
                    total = total + each[target >= 0].mean()
                    continue
                total = total + each[telling].sum() / telling.sum().clamp(min=1) + 0.5 * each[plain].mean()
                changed = target > CHANGES.index('stayed')
                self.told = float((scores.argmax(-1) == target)[changed].float().mean())
        return total

    @staticmethod
    def _scores(head: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        return head(F.rms_norm(hidden.float(), hidden.shape[-1:]))

    @staticmethod
    def _place_loss(scores: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        row = cell.div(COLUMNS, rounding_mode='floor')
        column = cell % COLUMNS
        return F.cross_entropy(scores[:, :ROWS], row) + F.cross_entropy(scores[:, ROWS : ROWS + COLUMNS], column)


def answers_loss(
    model: Any, features: torch.Tensor, packed: PackedPrompts, image_token: int
) -> tuple[torch.Tensor, list[Tally]]:
    """Return the mean cross-entropy of the answer tokens, and the tally of each kind of question.

    features: (batch, frames * 108, hidden), the visual tokens in their order.
    """
    ids = packed.ids
    labels = packed.labels
    segments = packed.segments
    embeds = model.model.language_model.embed_tokens(ids)
    embeds = embeds.masked_scatter((ids == image_token)[..., None], features.to(embeds.dtype))
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    seen = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    mask = (causal & seen)[:, None]
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask={'full_attention': mask}, position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    scored = labels >= 0
    logits = model.lm_head(hidden[scored]).float()
    loss = F.cross_entropy(logits, labels[scored])
    with torch.no_grad():
        tally = _tally(logits.argmax(-1) == labels[scored], segments, packed.kinds, scored)
    return loss, tally


def _tally(right: torch.Tensor, segments: torch.Tensor, kinds: torch.Tensor, scored: torch.Tensor) -> list[Tally]:
    """A question counts as right when every token of its answer is."""
    row = torch.arange(len(segments), device=segments.device)[:, None].expand_as(segments)
    question = (row * 1000 + segments)[scored]
    _, index = question.unique(return_inverse=True)
    wrong = torch.zeros(int(index.max()) + 1, device=right.device).index_add_(0, index, (~right).float())
    kind = torch.zeros(len(wrong), dtype=torch.long, device=right.device).index_copy_(0, index, kinds[scored])
    return [(KINDS[k], int((wrong[kind == k] == 0).sum()), int((kind == k).sum())) for k in kind.unique().tolist()]


def seeing_loss(
    model: Any, features: torch.Tensor, scenes: list[Things], tokenizer: Tokenizer
) -> tuple[torch.Tensor, list[float]]:
    """Return the cross-entropy of every cell's colour and shape, and the shares of cells that were right.

    The word embeddings of the language model are the classifier.
    """
    labels = [cell_labels(things)[0] for things in scenes]
    owner = torch.from_numpy(np.stack(labels)).to(features.device)
    total = torch.zeros((), device=features.device)
    rights = []
    normed = F.rms_norm(features.float(), features.shape[-1:])
    for attribute, values in (('colour', list(tabletop.COLOURS)), ('shape', list(tabletop.SHAPES))):
        ids = [tokenizer.token_to_id(word) for word in (*values, words.NOTHING)]
        target = np.full(owner.shape, len(values))
        for row, (things, cells) in enumerate(zip(scenes, labels)):
            for index, thing in enumerate(things):
                target[row, cells == index] = values.index(getattr(thing, attribute))
        target = torch.from_numpy(target).to(features.device)
        logits = normed @ model.model.language_model.embed_tokens.weight[ids].float().T
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction='none').view(owner.shape)
        filled = owner >= 0
        empty = owner == -1
        total = total + loss[filled].mean() + 0.5 * loss[empty].mean()
        rights.append(float((logits.argmax(-1) == target)[filled].float().mean()))
    return total, rights
