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

"""One camera's drift audit: while the model is idle, repeat a share of the answers cold-dense and compare them."""

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vlm_reuse_node.config import PATCH_POLICY, Config
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Check, Vlm
from vlm_reuse_node.model.work import Meter, Work
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answerer import Answerer, TokenizedQuestion
from vlm_reuse_node.session.drift_audit import AuditCounts, DriftAudit
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.identity import Identity
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.state import State, twin
from vlm_reuse_node.session.turn import Halt, Turn

# Most answers that wait for their audit. The frames of each are kept until then.
MOST_WAITING = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sample:
    """An answer to audit, its question, and frames, templates, identity and tokens of its state.

    answer: expected work.
    """

    outcome: Outcome
    tokenized: TokenizedQuestion
    frames: tuple[Frame, ...]
    template_for: Callable[[int], PromptTemplate]
    identity: Identity
    state_tokens: int
    answer: Work


class Auditor:
    """Chooses the answers to audit, repeats them cold-dense, and counts the differences."""

    def __init__(self, vlm: Vlm, answerer: Answerer, camera: str) -> None:
        """Start with all counts at 0."""
        self._vlm, self._answerer, self._camera = vlm, answerer, camera
        self._audit = DriftAudit()
        self._waiting: deque[_Sample] = deque()
        self._twin: State | None = None  # the cold-dense state of the first waiting answer, while it is computed

    @property
    def counts(self) -> AuditCounts:
        """The counts so far."""
        return self._audit.counts

    def allows_patches(self, config: Config) -> bool:
        """Whether approximate states may be used now."""
        return config.refresh_policy == PATCH_POLICY and self._audit.is_trusted

    @property
    def held_bytes(self) -> int:
        """Bytes of the cold-dense state that the current audit has computed, without the pixels, which are `frames`."""
        state = self._twin  # another thread may ask for it while the model's thread ends the audit
        return state.array_bytes if state else 0

    @property
    def frames(self) -> list[Frame]:
        """The frames that are kept for answers that wait for their audit."""
        return [frame for sample in self._waiting for frame in sample.frames]

    def pixel_bytes(self, state: State | None) -> int:
        """Bytes of the pixels of `frames`, each picture once, without those that a state holds too."""
        held = {id(encoded.frame.rgb) for encoded in state.frames} if state else set()
        return sum({id(frame.rgb): frame.rgb.nbytes for frame in self.frames if id(frame.rgb) not in held}.values())

    def expected(self, meter: Meter) -> Work | None:
        """The expected work of the rest of the first waiting audit; None without one."""
        if not self._waiting:
            return None
        sample = self._waiting[0]
        done, tokens = (len(self._twin.frames), self._twin.tokens) if self._twin else (0, 0)
        grids = sample.identity.grids[done:]
        tokens_each = math.ceil((sample.state_tokens - tokens) / max(1, len(grids)))
        return sum((meter.frame(grid.cells, tokens_each) for grid in grids), sample.answer)

    def forget(self) -> None:
        """Drop the waiting answers. The counts stay."""
        self._waiting.clear()
        self._twin = None

    def note(self, outcome: Outcome, tokenized: TokenizedQuestion, state: State, config: Config) -> None:
        """Note an answer that was given from this state. A share of all answers is audited."""
        was_trusted = self._audit.is_trusted
        is_chosen = self._audit.chooses(config.audit_share, config.max_drift)
        self._log_trust(was_trusted, config)
        if is_chosen and len(self._waiting) < MOST_WAITING:
            # For the second state that an audit needs; it has no checkpoints.
            has_room = 2 * state.held_bytes - state.checkpoint_bytes <= 1e6 * config.max_cache_mb
            if has_room:
                frames = tuple(encoded.frame for encoded in state.frames)
                answer = self._answerer.expected(tokenized)
                self._waiting.append(
                    _Sample(outcome, tokenized, frames, state.template_for, state.identity, state.tokens, answer)
                )

    def step(self, check: Check, config: Config) -> None:
        """Work on the first waiting answer: compute its next frame, or repeat the answer when all frames are computed.

        check: may raise Halt between two steps of the model; the next call repeats the step.
        Raises nothing.
        """
        if not self._waiting:
            return
        sample = self._waiting[0]

        def is_cancelled() -> bool:
            check()  # raises Halt when the step must wait
            return False

        turn = Turn(cancelled=is_cancelled)
        try:
            self._twin = self._twin or State(self._vlm, sample.template_for)
            if remaining := sample.frames[len(self._twin.frames) :]:
                self._twin.append(EncodedFrame.see(self._vlm, remaining[0], turn.check), turn.check)
                return
            again = self._answerer.answer(twin(self._twin, sample.identity), sample.tokenized, turn)
        except Halt:
            return
        except Exception:
            _log.exception("Camera '%s': an answer could not be audited.", self._camera)
        else:
            was_trusted = self._audit.is_trusted
            drifted, has_choices = again.differs_from(sample.outcome), bool(sample.tokenized.choices)
            self._audit.add(drifted, sample.identity.exact, has_choices, config.max_drift)
            self._log_trust(was_trusted, config)
        self._twin = None
        self._waiting.popleft()

    def _log_trust(self, was_trusted: bool, config: Config) -> None:
        """Log when patching stops, and when it starts again."""
        counts = self.counts
        if was_trusted and not counts.is_trusted:
            _log.warning(
                "Camera '%s': %d of %d audited answers from patched states drifted, which is more than max_drift %g "
                'explains. Changed pictures are computed whole for now.',
                self._camera,
                counts.patched.drifted,
                counts.patched.answers,
                config.max_drift,
            )
        elif counts.is_trusted and not was_trusted:
            _log.info("Camera '%s': patching is tried again.", self._camera)
