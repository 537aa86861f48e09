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

"""Compares cold answers with those that mlx-vlm itself gives: the only claim that does not rest on this package."""

from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm import stream_generate
from PIL import Image

from vlm_reuse_node.check.claim import Claim
from vlm_reuse_node.check.cold import Cold, columns_of, log_table
from vlm_reuse_node.check.questions import TEXT_TOKENS
from vlm_reuse_node.model.chat import rendered
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.plain_text import error_line
from vlm_reuse_node.scene.frame import Frame

COLUMNS = 64


def compare_with_mlx_vlm(claim: Claim, vlm: Vlm, frame: Frame, template: PromptTemplate, texts: list[str]) -> None:
    """Let mlx-vlm answer, and compare its tokens and log-probabilities with those of `Cold` along its answers.

    A model that mlx-vlm's own generate cannot run gets no claim, with the reason.
    """
    cold = Cold(vlm, [frame], template)
    found: list[tuple[list[int], list[int], np.ndarray]] = []
    for text in texts:
        try:
            ids, table = _answer(vlm, frame, text)
        except Exception as error:  # of any of its models
            claim.reason = f"mlx-vlm's own generate fails: {error_line(error, 200)}"
            return
        found.append((template.question(text), ids, table))
    columns = [np.argsort(-table, axis=-1)[:, :COLUMNS] for _, _, table in found]
    difference = cold.difference(
        [columns_of(table, each) for (_, _, table), each in zip(found, columns)],
        lambda run: [
            columns_of(cold.table(run, question, ids)[: len(table)], each)
            for (question, ids, table), each in zip(found, columns)
        ],
    )
    claim.asked = len(found)
    claim.compare('log-probabilities of texts', difference)
    for question, ids, table in found:
        ours = cold.table(cold.run(), question, ids)
        gaps = [float(ours[row].max() - ours[row, token]) for row, token in enumerate(table.argmax(axis=-1))]
        if max(gaps, default=0.0) < difference.bound:
            claim.equal += 1
            claim.ties += max(gaps, default=0.0) > 0
        else:
            claim.fail(['A cold answer is not the one that mlx-vlm gives.'])


def _answer(vlm: Vlm, frame: Frame, text: str) -> tuple[list[int], np.ndarray]:
    """An answer's tokens, and the log-probabilities before each and at its end, (tokens or one more, vocabulary)."""
    options: dict[str, Any] = {
        'prompt': rendered(vlm._processor, vlm._model.config, text, 1),
        'image': [Image.fromarray(frame.rgb)],
        'max_tokens': TEXT_TOKENS,
        'temperature': 0.0,
    }
    results = list(stream_generate(vlm._model, vlm._processor, **options))
    # The last result may tell once more of a token before it.
    steps = [new for old, new in pairwise([None, *results]) if not old or new.generation_tokens > old.generation_tokens]
    table = log_table(mx.stack([mx.array(step.logprobs).reshape(-1) for step in steps]))
    return [step.token for step in steps if step.token not in vlm.stop_ids], table
