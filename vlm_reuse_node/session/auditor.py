"""One camera's drift audit: answers given again from nothing while nobody asks, a step of the model at a time."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.answerer import Answerer, Asked
from vlm_reuse_node.session.drift_audit import Audited, DriftAudit
from vlm_reuse_node.session.state import Identity, Picture, State
from vlm_reuse_node.session.turn import Stopped, Turn

# Answers that wait; the pictures of each are kept until then.
MOST_WAITING = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Given:
    """An answer, what was asked, and the state it was given from."""

    outcome: dict
    asked: Asked
    frames: tuple[Frame, ...]
    identity: Identity


class Auditor:
    """Chooses answers, gives them again, and counts."""

    def __init__(self, vlm: Vlm, template_for: Callable, answerer: Answerer, camera: str):
        """Start with nothing counted. template_for: the prompt of so many pictures."""
        self._vlm, self._template_for, self._answerer, self._camera = vlm, template_for, answerer, camera
        self._audit, self._waiting = DriftAudit(), deque()
        self._twin: State | None = None  # of the first that waits, as far as it is computed

    @property
    def counts(self) -> Audited:
        """What came out so far."""
        return self._audit.counts

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

    def note(self, outcome: dict, asked: Asked, state: State, config: Config) -> None:
        """Take an answer that was given from this state; a share of all is given again."""
        was_trusted = self.counts.is_trusted
        chosen = self._audit.chooses(config.audit_share, config.max_drift)
        self._tell_trust(was_trusted, config)
        fits = 2 * state.held_bytes <= 1e6 * config.max_cache_mb  # with the second state that it needs
        if chosen and fits and len(self._waiting) < MOST_WAITING:
            frames = tuple(picture.frame for picture in state.pictures)
            self._waiting.append(_Given(outcome, asked, frames, state.identity))

    def step(self, check: Callable[[], None], config: Config, keeps_vision: bool) -> None:
        """Compute the next picture of the first answer that waits, or when they are all there, give it again.

        check: may raise Stopped between two steps of the model; the step is taken the next time. keeps_vision: see the
        pictures in the way that lets them be patched, as the kept state was. Raises nothing.
        """
        if not self._waiting:
            return
        given, turn = self._waiting[0], Turn(cancelled=lambda: bool(check()))
        try:
            self._twin = self._twin or State(self._vlm, self._template_for)
            if left := given.frames[len(self._twin.pictures) :]:
                self._twin.append(Picture.see(self._vlm, left[0], turn.check, keeps_vision), turn.check)
                return
            again = self._answerer.answer(states.twin(self._twin, given.identity), given.asked, turn)
        except Stopped:
            return
        except Exception:
            _log.exception("Camera '%s': an answer could not be audited.", self._camera)
        else:
            was_trusted = self.counts.is_trusted
            self._audit.add(differ(given.outcome, again), given.identity.exact, config.max_drift)
            self._tell_trust(was_trusted, config)
        self._twin = None
        self._waiting.popleft()

    def _tell_trust(self, before, config):
        now = self.counts
        if before and not now.is_trusted:
            _log.warning(
                "Camera '%s': %d of %d audited answers from patched states drifted, more than max_drift %g: "
                'changed pictures are computed whole for now.',
                self._camera,
                now.drifted,
                now.answers,
                config.max_drift,
            )
        elif now.is_trusted and not before:
            _log.info("Camera '%s': patches are tried again.", self._camera)


def differ(outcome: dict, again: dict) -> bool:
    """Whether two answers to one question are different."""
    return any(outcome.get(part) != again.get(part) for part in ('choice_index', 'token_ids'))
