"""The record of what one arm answered."""

from dataclasses import dataclass

from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.session.answer import Answer


@dataclass(frozen=True)
class ArmAnswer:
    """What an arm answered, and what that cost.

    frames: the pictures in the prompt, oldest first, the live one last.
    refreshes: pictures that this answer paid for.
    visual_tokens: of the pictures that were computed for this answer; None where the arm does not tell.
    tokens_prefilled: all prompt tokens that this answer paid for, those of its pictures included.
    total_ms: the whole call.
    """

    answer: Answer
    frames: tuple[Frame, ...] = ()
    refreshes: tuple[Refresh, ...] = ()
    visual_tokens: int | None = None
    tokens_reused: int = 0
    tokens_prefilled: int = 0
    total_ms: float = 0.0
