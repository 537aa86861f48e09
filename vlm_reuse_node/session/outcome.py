"""What the model said to a question; where it said it from, and what that cost, make it an `Answer`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """The model's own part of an answer, by the names of `Answer`'s fields.

    confidence: probability of the best choice, or of a text's least likely token.
    """

    text: str
    confidence: float
    choice_index: int = -1
    choice_scores: tuple[float, ...] = ()
    token_ids: tuple[int, ...] = ()
    message: str = ''

    @property
    def tokens_generated(self) -> int:
        """Tokens of the text; none where choices were scored."""
        return len(self.token_ids)

    def differs_from(self, other: 'Outcome') -> bool:
        """Whether this is another answer to the same question: another choice, or other tokens."""
        return (self.choice_index, self.token_ids) != (other.choice_index, other.token_ids)
