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

"""The questions file that `bag.py` writes beside a bag: what is asked when, and what is true when.

Times are seconds from the stamp of the bag's first picture.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.replay.truth import Truth, truth_at


class SidecarError(VlmReuseError):
    """A questions file that cannot be used."""


@dataclass(frozen=True)
class PlannedQuestion:
    """A question for one moment, with its true answers over time; where there is none, it cannot be judged."""

    at_s: float
    text: str
    choices: tuple[str, ...] = ()
    kind: str = ''
    truths: tuple[Truth, ...] = ()

    def truth_at(self, picture_s: float) -> str | None:
        """Return the true answer about the picture taken at that time; None: nobody can judge."""
        return truth_at(self.truths, picture_s)


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
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise SidecarError(
            f"'{path}' cannot be used as a questions file: {type(error).__name__}: {error}. Write the bag "
            'anew; its questions file comes with it.'
        ) from error


def _question(entry: dict) -> PlannedQuestion:
    truths = tuple(Truth(float(span['from_s']), float(span['to_s']), str(span['answer'])) for span in entry['answers'])
    return PlannedQuestion(float(entry['at_s']), entry['question'], tuple(entry['choices']), entry['kind'], truths)
