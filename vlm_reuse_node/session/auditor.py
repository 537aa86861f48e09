"""One camera's drift audit: answers given again from nothing while nobody asks, a step of the model at a time."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Check, Vlm
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answerer import Answerer, TokenizedQuestion
from vlm_reuse_node.session.drift_audit import AuditCounts, DriftAudit
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.state import Identity, State, twin
from vlm_reuse_node.session.turn import Halt, Turn

# Answers that wait; the frames of each are kept until then.
MOST_WAITING = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sample:
    """An answer that is to be given again, its question, and the state it was given from."""

    outcome: Outcome
    asked: TokenizedQuestion
    frames: tuple[Frame, ...]
    identity: Identity


class Auditor:
    """Chooses answers, gives them again, and counts."""

    def __init__(self, vlm: Vlm, template_for: Callable[[int], PromptTemplate], answerer: Answerer, camera: str):
        """Start with nothing counted. template_for: the prompt of so many frames."""
        self._vlm, self._template_for, self._answerer, self._camera = vlm, template_for, answerer, camera
        self._audit = DriftAudit()
        self._waiting: deque[_Sample] = deque()
        self._twin: State | None = None  # of the first that waits, as far as it is computed

    @property
    def counts(self) -> AuditCounts:
        """What came out so far."""
        return self._audit.counts

    @property
    def is_trusted(self) -> bool:
        """Whether approximate states may be used now."""
        return self._audit.is_trusted

    @property
    def has_work(self) -> bool:
        """Whether an answer waits."""
        return bool(self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether the audit of one has begun."""
        return self._twin is not None

    @property
    def held_bytes(self) -> int:
        """Bytes of the state that is computed for it."""
        return self._twin.held_bytes if self._twin else 0

    def forget(self) -> None:
        """Drop the answers that wait; the counts stay."""
        self._waiting.clear()
        self._twin = None

    def note(self, outcome: Outcome, asked: TokenizedQuestion, state: State, config: Config) -> None:
        """Take an answer that was given from this state; a share of all is given again."""
        was_trusted = self._audit.is_trusted
        is_chosen = self._audit.chooses(config.audit_share, config.max_drift)
        self._tell_trust(was_trusted, config)
        if is_chosen and len(self._waiting) < MOST_WAITING:
            has_room = 2 * state.held_bytes <= 1e6 * config.max_cache_mb  # with the second state that it needs
            if has_room:
                frames = tuple(encoded.frame for encoded in state.frames)
                self._waiting.append(_Sample(outcome, asked, frames, state.identity))

    def step(self, check: Check, config: Config, keeps_vision: bool) -> None:
        """Compute the next frame of the first answer that waits, or when they are all there, give it again.

        check: may raise Halt between two steps of the model; the step is taken the next time. keeps_vision:
        see the frames in the way that lets them be patched, as the kept state was. Raises nothing.
        """
        if not self._waiting:
            return
        sample = self._waiting[0]

        def is_cancelled() -> bool:
            check()  # raises where the step must wait
            return False

        turn = Turn(cancelled=is_cancelled)
        try:
            self._twin = self._twin or State(self._vlm, self._template_for)
            if left := sample.frames[len(self._twin.frames) :]:
                self._twin.append(EncodedFrame.see(self._vlm, left[0], turn.check, keeps_vision), turn.check)
                return
            again = self._answerer.answer(twin(self._twin, sample.identity), sample.asked, turn)
        except Halt:
            return
        except Exception:
            _log.exception("Camera '%s': an answer could not be audited.", self._camera)
        else:
            was_trusted = self._audit.is_trusted
            self._audit.add(again.differs_from(sample.outcome), sample.identity.exact, config.max_drift)
            self._tell_trust(was_trusted, config)
        self._twin = None
        self._waiting.popleft()

    def _tell_trust(self, was_trusted: bool, config: Config) -> None:
        """Log when approximate states may not be used any more, or may be again."""
        counts = self.counts
        if was_trusted and not counts.is_trusted:
            _log.warning(
                "Camera '%s': %d of %d audited answers from patched states drifted, more than max_drift %g: "
                'changed pictures are computed whole for now.',
                self._camera,
                counts.drifted,
                counts.answers,
                config.max_drift,
            )
        elif counts.is_trusted and not was_trusted:
            _log.info("Camera '%s': patches are tried again.", self._camera)
