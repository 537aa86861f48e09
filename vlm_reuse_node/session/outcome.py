"""The record of the model's reply to a question. `Answer` adds the frame it came from and its cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """The model's part of an answer. The fields have the names of `Answer`'s fields.

    confidence: probability of the best choice, or of a text's least likely token.
    """

    text: str
    confidence: float
    choice_index: int = -1
    choice_scores: tuple[float, ...] = ()
    token_ids: tuple[int, ...] = ()
    message: str = ''

    def differs_from(self, other: 'Outcome') -> bool:
        """Whether the choice or the tokens differ from another answer to the same question."""
        return (self.choice_index, self.token_ids) != (other.choice_index, other.token_ids)
