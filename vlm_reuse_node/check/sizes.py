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

"""What a picture costs at a few sizes: the same model with other values of `visual_tokens`."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlm_reuse_node.check.levels import STEADY
from vlm_reuse_node.check.stages import COLD, IMAGE, SLOT, VISION, Stages
from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answerer import Answerer
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.state import State, build

CAMERAS = ((480, 640), (1080, 1920))  # height and width of the pictures whose tokens are told
SHARES = (2, 4, 8)  # of the tokens that the checked picture has
# A size is timed when that is likely to end within so long after the first one: it takes about so many cold answers.
LONGEST_S, ANSWERS = 20.0, 5


@dataclass(frozen=True)
class Size:
    """Pictures at one value of visual_tokens.

    cells: visual tokens of the checked picture, and of one of 640 x 480 and of 1920 x 1080. vision_ms, frame_ms,
    cold_ms: of vision with the image processor, of the prefill of a frame, and of an answer with choices from nothing;
    about the checked picture. picture_mb: its state. They are None when there was no time for them.
    """

    visual_tokens: int
    cells: int
    cells_480: int
    cells_1080: int
    vision_ms: float | None = None
    frame_ms: float | None = None
    cold_ms: float | None = None
    picture_mb: float | None = None


def sizes(vlm: Vlm, given: int, stages: Stages, frame: Frame) -> tuple[list[Size], str]:
    """Measure smaller sizes of pictures that the model allows. The first one is that with which it was loaded.

    given: the value of visual_tokens that it was loaded with. stages: of that size. Returns the sizes, and a sentence
    when some are missing.
    """
    began_s = time.perf_counter()
    times = stages.ms(IMAGE) + stages.ms(VISION), stages.ms(SLOT), stages.ms(COLD)
    _, state = _state(vlm, frame)
    found = [Size(given, *_counts(vlm, frame), *times, state.held_bytes / 1e6)]
    note = ''
    for share in SHARES:
        most = max(1, found[0].cells // share)
        try:
            other = vlm.with_visual_tokens(most)
            counts = _counts(other, frame)
        except ModelError as error:
            note = note or str(error)
            break
        if counts[0] >= found[-1].cells:
            continue
        if time.perf_counter() - began_s + ANSWERS * stages.ms(COLD) / 1e3 > LONGEST_S:
            found.append(Size(most, *counts))
            note = f'Not all sizes were timed: that would have taken more than {LONGEST_S:g} s.'
        else:
            found.append(Size(most, *counts, *_measure(other, frame, stages.choice)))
    return found, note


def _counts(vlm: Vlm, frame: Frame) -> tuple[int, int, int]:
    """Visual tokens of the picture, and of grey ones of CAMERAS."""
    small, large = (vlm.grid(np.full((*size, 3), 128, np.uint8)).cells for size in CAMERAS)
    return vlm.grid(frame.rgb).cells, small, large


def _measure(vlm: Vlm, frame: Frame, question: Question) -> tuple[float, float, float, float]:
    """Milliseconds of vision, of the prefill of a frame and of a cold answer; megabytes of the state."""
    template = vlm.template('', 1)
    tokenized = Answerer(vlm, template).tokenize(question, STEADY)
    seen, state = _state(vlm, frame)
    held_mb = state.held_bytes / 1e6

    def prefill() -> None:
        state.drop_live()
        state.append(seen)

    def answer() -> None:
        cold = build(vlm, lambda frames: template, [EncodedFrame.see(vlm, frame)], later=True)
        cold.read(tokenized.blocks())

    return _ms(lambda: EncodedFrame.see(vlm, frame)), _ms(prefill), _ms(answer), held_mb


def _state(vlm: Vlm, frame: Frame) -> tuple[EncodedFrame, State]:
    """A state of the picture."""
    seen = EncodedFrame.see(vlm, frame)
    return seen, build(vlm, lambda frames: vlm.template('', 1), [seen])


def _ms(call: Callable[[], object]) -> float:
    """Milliseconds of a run, after one that plans kernels."""
    call()
    started_s = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started_s)
