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

"""The claim of every exact level: a warm answer is the cold one, and no question leaves a trace."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vlm_reuse_node.check.asking import Asked, Asker, compare
from vlm_reuse_node.check.claim import CheckError, Claim
from vlm_reuse_node.check.cold import Cold
from vlm_reuse_node.config import EXACT_POLICY, Config
from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.model import pass_cache
from vlm_reuse_node.model.vlm import PREFILL_CHUNK, Vlm
from vlm_reuse_node.plain_text import one_line
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

KEYFRAMES = 2
TOGETHER = 3
# Nothing but what is checked decides what is done: no age, no keyframe, no audit, and credit for everything.
STEADY = Config(
    refresh_policy=EXACT_POLICY,
    timeout_s=3600.0,
    max_age_s=86_400.0,
    max_cell_age_s=3600.0,
    keyframe_interval_s=0.0,
    upkeep_share=1000.0,
    audit_share=0.0,
)


class LevelCheck:
    """Takes one session through its exact levels.

    passes: the claim about questions with choices that waited for no refresh. documents: about a JSON schema.
    picture_mb, picture_tokens: megabytes and tokens of the state of one picture; 0 before the first.
    """

    def __init__(self, vlm: Vlm, frames: Sequence[Frame], questions: Sequence[Question]) -> None:
        """Start a session. frames: four. questions: all, as `make_questions` returns them."""
        self._vlm, self._frames, self._questions = vlm, frames, questions
        self._session = SceneSession(vlm, STEADY, measures_time=False)
        self._asker = Asker(vlm, self._session)
        self.passes = Claim('one pass', 'one pass through the language model for a question with choices')
        self.picture_mb, self.picture_tokens = 0.0, 0
        self.documents = Claim('JSON schema', 'a document that follows a schema is the cold one')

    def full_and_reuse(self, count: int) -> list[Claim]:
        """The first picture: the first question pays for everything, the next ones for their own text."""
        full = Claim(Level.FULL, 'the first picture and its first question, in one go')
        reuse = Claim(Level.REUSE, 'further questions about the kept state')
        with guarded(full, reuse):
            first, *later = self._ask(self._frames[0], Level.FULL, count + 1)
            together = self._ask_together(count + 1)
            cold = self._cold()
            compare(full, [first], cold, self._asker.state)
            compare(reuse, later + together, cold, self._asker.state)
            self._count(later)
        return [full, reuse]

    def frame(self, count: int) -> Claim:
        """Another picture takes the place of the first one."""
        claim = Claim(Level.FRAME, 'a new picture behind what is kept')
        with guarded(claim):
            asked = self._ask(self._frames[1], Level.FRAME, count)
            compare(claim, asked, self._cold(), self._asker.state)
            self._count(asked[1:])
        return claim

    def history(self, count: int) -> Claim:
        """More pictures, whose older ones stay as keyframes."""
        claim = Claim('history', f'a new picture behind {KEYFRAMES} keyframes')
        with guarded(claim):
            self._session.config = STEADY.with_values(history_frames=KEYFRAMES)
            claim.fail(self._ask(self._frames[2], Level.FRAME, 1)[0].faults)
            asked = self._ask(self._frames[3], Level.FRAME, count)
            claim.reason = self._why_no_history()
            if claim.reason:
                return claim
            compare(claim, asked, self._cold(), self._asker.state)
            self._count(asked[1:])
        return claim

    def _ask(self, frame: Frame, level: Level, count: int) -> list[Asked]:
        first, *later = self._questions[:count]
        return [self._asker.ask(first, level, frame), *(self._asker.ask(each, Level.REUSE) for each in later)]

    def _ask_together(self, asked: int) -> list[Asked]:
        """Questions that were not asked yet, at once."""
        questions = [question for question in self._questions[asked:] if question.choices][:TOGETHER]
        if not questions:
            return []
        together, passes = self._asker.ask_together(questions)
        if self._asker.state.can_branch and passes != 1:
            self.passes.fail([f'{len(questions)} questions that wait together took {passes} passes; expected 1.'])
        return together

    def _cold(self) -> Cold:
        state = self._asker.state
        frames, features = zip(*((encoded.frame, encoded.features) for encoded in state.frames))
        return Cold(self._vlm, frames, state.template, features)

    def _count(self, asked: Sequence[Asked]) -> None:
        """Add questions to the claims about passes and documents; measure the state."""
        state, passes, documents = self._asker.state, self.passes, self.documents
        frames = len(state.frames)
        self.picture_mb, self.picture_tokens = state.held_bytes / frames / 1e6, -(-state.tokens // frames)
        for each in asked:
            if each.cold is not None:
                documents.asked += 1
                documents.equal += each.is_equal
                documents.fail([] if each.is_equal else ['A document is not the cold one.'])
            if not each.tokenized.choices:
                continue
            passes.passes.append(each.passes)
            passes.asked += 1
            passes.equal += each.passes == 1
            if state.can_branch and each.tokenized.cost <= PREFILL_CHUNK and each.passes != 1:
                passes.fail([f'A question took {each.passes} passes; expected 1.'])
        if not state.can_branch:
            passes.reason = why_no_branches(self._vlm, state.cache)

    def _why_no_history(self) -> str:
        """Why fewer keyframes are kept than were asked for; '' when they are."""
        kept = self._session.status.frames - 1
        if kept == KEYFRAMES:
            return ''
        if not self._vlm.template('', 2).extends(self._vlm.template('', 1)):
            return 'the chat template does not put a second picture directly behind the first'
        return f'only {kept} of {KEYFRAMES} keyframes fit into max_cache_mb and the context of the model'


def why_no_branches(vlm: Vlm, cache: list) -> str:
    """Why a model cannot compute a question and its choices in one pass."""
    if not vlm.family.branches:
        return 'its layers take no mask that keeps choices apart: choices are read in turn'
    unable = sorted({type(part).__name__ for part in cache if not pass_cache.is_possible([part])})
    return f'its cache ({", ".join(unable)}) cannot branch: choices are read in turn'


def why_no_schema(vlm: Vlm, schema: str) -> str:
    """Return why the model cannot follow a JSON schema; '' when it can."""
    try:
        vlm.json_schemas.grammar(schema)
    except VlmReuseError as error:
        return str(error)
    return ''


@contextmanager
def guarded(*claims: Claim) -> Iterator[None]:
    """Turn whatever is raised inside into a fault of these claims: what cannot be checked is not to be trusted."""
    try:
        yield
    except Exception as error:
        kind = '' if isinstance(error, CheckError) else f'It cannot be checked, {type(error).__name__}: '
        for claim in claims:
            claim.fail([one_line(f'{kind}{error}', 300)])
