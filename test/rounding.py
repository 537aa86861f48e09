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

"""What rounding alone may change, for tests that compare two ways of computing the same; see `model/noise.py`."""

from functools import partial

import numpy as np

from vlm_reuse_node.model import noise
from vlm_reuse_node.model.token_tree import Block
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.encoded_frame import EncodedFrame

# What is really wrong is off by more than so many times the bound.
WIDE = 10


def state_bound(vlm, frames, measure, template_for=None):
    """The bound of what `measure` says of a state of these frames, when all is computed from their pixels."""
    prepared = [vlm.family.prepare(frame.rgb) for frame in frames]

    def compute(pixels):
        seen = [
            EncodedFrame(frame, grid, vlm.family.encode(values, grid))
            for frame, values, (_, grid) in zip(frames, pixels, prepared)
        ]
        return measure(states.build(vlm, template_for or partial(vlm.template, ''), seen))

    return noise.bound([pixels for pixels, _ in prepared], compute)


def log_scores(vlm, state, *questions):
    """Log-probabilities of the choices of questions about a state: an array each."""
    scores = []
    for question in questions:
        ids, choices = state.template.question(question.text), state.template.choices(question.choices)
        end, *later = state.read([Block(ids), *(Block(choice, 0, is_answer=True) for choice in choices)]).logits
        scores.append(np.log(vlm.shares(end, list(zip(choices, later)))))
        state.restore()
    return scores


def choice_bound(session, *questions):
    """The bound of the log-probabilities of choices, of questions about the pictures that a session keeps."""
    vlm, frames = session._vlm, [picture.frame for picture in session._refresher.state.frames]
    return state_bound(vlm, frames, lambda state: log_scores(vlm, state, *questions), session._template_for)


def choices_apart(one, other):
    """How far the log-probabilities of two answers' choices are apart."""
    return noise.apart(np.log(one.choice_scores), np.log(other.choice_scores))
