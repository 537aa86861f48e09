"""What is asked along a bag and what is true when: the questions file that `bag.py` writes beside a bag.

Times are seconds from the stamp of the bag's first picture.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.replay.truth import Truth


class SidecarError(VlmReuseError):
    """A questions file that cannot be used."""


@dataclass(frozen=True)
class PlannedQuestion:
    """A question for one moment, with its true answers over time; where none is given, nobody should judge."""

    at_s: float
    text: str
    choices: tuple[str, ...] = ()
    kind: str = ''
    truths: tuple[Truth, ...] = ()

    def truth_at(self, picture_s: float) -> Truth | None:
        """The truth about the picture taken at that time."""
        return next((truth for truth in self.truths if truth.from_s <= picture_s < truth.to_s), None)


@dataclass(frozen=True)
class Sidecar:
    """One bag's questions, by time, and which topic they are about."""

    topic: str
    camera: str
    seconds: float
    questions: tuple[PlannedQuestion, ...]


def read_sidecar(path: Path) -> Sidecar:
    """Read a questions file.

    Raises SidecarError that names the file and what is wrong with it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        questions = sorted((_question(entry) for entry in content['questions']), key=lambda question: question.at_s)
        return Sidecar(content['topic'], content['camera'], float(content['seconds']), tuple(questions))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as err:
        raise SidecarError(
            f"'{path}' cannot be used as a questions file: {type(err).__name__}: {err}. Write the bag "
            'anew; its questions file comes with it.'
        ) from err


def _question(entry: dict) -> PlannedQuestion:
    truths = tuple(Truth(float(span['from_s']), float(span['to_s']), str(span['answer'])) for span in entry['answers'])
    return PlannedQuestion(float(entry['at_s']), entry['question'], tuple(entry['choices']), entry['kind'], truths)
