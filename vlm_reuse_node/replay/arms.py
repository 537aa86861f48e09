"""The arms of a replay: ways to answer the same questions about the same pictures. One entry of `ARMS` each.

Every arm has the same model, prompt, seed, chunk grid and question, asked at the same moment; docs/replay.md says what
each sees and what it is compared with.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import mlx.core as mx
import numpy as np
from mlx_vlm import generate
from mlx_vlm.generate import PromptCacheState
from mlx_vlm.prompt_utils import apply_chat_template
from PIL import Image

from vlm_reuse_node.config import PATCH_POLICY, Config
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.replay.questions import plain
from vlm_reuse_node.replay.window import Window
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.session import question as questions
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

REFERENCE, POLICY = 'cold', 'default'


@dataclass(frozen=True)
class Reply:
    """What an arm says, and what that took.

    refreshes: pictures that this answer paid for. frames: the pictures in the prompt, oldest first, the live one last.
    visual_tokens: of the pictures that were computed for this answer; None where the arm does not tell.
    tokens_prefilled: all prompt tokens this answer paid for, its pictures' included. total_ms: the whole call.
    """

    answer: Answer
    frames: tuple[Frame, ...]
    refreshes: tuple[Refresh, ...]
    visual_tokens: int | None
    tokens_reused: int
    tokens_prefilled: int
    total_ms: float


class Runner(Protocol):
    """One arm at work on one camera. It belongs to the thread that loaded the model."""

    def see(self, frame: Frame) -> list[Refresh]:
        """Take the next picture; returns what that cost, nothing for an arm that waits for questions."""
        ...

    def ask(self, question: Question, now_ns: int) -> Reply:
        """Answer now."""
        ...


class _Session(SceneSession):
    """A session that shows which pictures it keeps."""

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The pictures in the prompt, oldest first."""
        return tuple(picture.frame for picture in self._state.pictures) if self._state else ()

    @property
    def cells(self) -> int:
        """Visual tokens of all of them."""
        return sum(picture.grid.cells for picture in self._state.pictures) if self._state else 0


@dataclass
class Scene:
    """What one camera's arms share. config: with the replay's own limits, see `replay_config`."""

    vlm: Vlm
    config: Config
    camera: str
    window: Window
    policy: 'Policy | None' = field(default=None, repr=False)


class Policy:
    """The engine as the node runs it: it sees every picture, and answers from the kept state."""

    def __init__(self, scene: Scene, **changes):
        """changes: of the configuration."""
        self._paid: list[Refresh] = []
        self.session = _Session(
            scene.vlm,
            scene.config.with_values(**changes),
            scene.camera,
            on_refresh=lambda _, refresh: self._paid.append(refresh),
        )

    def see(self, frame):
        """Every picture is observed; the rollovers that a node does while nobody asks are done at once."""
        self._paid.clear()
        self.session.observe(frame)
        while self.session.has_work:
            self.session.work()
        return list(self._paid)

    def ask(self, question, now_ns):
        """From the kept state."""
        self._paid.clear()
        ms, answer = _timed(lambda: self.session.ask(question, now_ns=now_ns))
        return self._reply(ms, answer)

    def _reply(self, ms, answer):
        return Reply(
            answer,
            self.session.frames,
            tuple(self._paid),
            _computed(self._paid),
            answer.tokens_reused,
            answer.tokens_prefilled,
            ms,
        )


class Held(Policy):
    """Reuse alone: one state for everything until it is `max_cell_age_s` old, whatever changes meanwhile."""

    def see(self, frame):
        """Only a picture that is due; the others are not even looked at."""
        newest = self.session.newest
        age_s = 0.0 if newest is None else (frame.stamp_ns - newest.stamp_ns) / 1e9
        if newest is not None and age_s < self.session.config.max_cell_age_s:
            nothing = np.zeros(self._paid[0].refreshed.shape, bool)
            return [
                Refresh(
                    frame.camera,
                    frame.stamp_ns,
                    frame.frame_id,
                    Level.REUSE,
                    'not looked at',
                    refreshed=nothing,
                    deferred=nothing,
                    changed=nothing,
                    oldest_cell_age_s=age_s,
                )
            ]
        self._paid.clear()
        self.session.observe(frame, force=newest is not None)
        return list(self._paid)

    def ask(self, question, now_ns):
        """From the kept state, whose refresh no question pays for."""
        ms, answer = _timed(lambda: self.session.ask(question, now_ns=now_ns))
        return Reply(answer, self.session.frames, (), 0, answer.tokens_reused, answer.tokens_prefilled, ms)


class OnDemand(Policy):
    """No picture is looked at before a question needs it; the question pays for the newest one's slot."""

    def __init__(self, scene: Scene):
        super().__init__(scene)
        self._window = scene.window

    def see(self, frame):
        """Nothing is done."""
        return []

    def ask(self, question, now_ns):
        """Refresh, then answer."""
        self._paid.clear()
        ms, answer = _timed(
            lambda: self.session.ask(
                replace(question, force_refresh=True), now_ns=now_ns, newest=lambda: self._window.newest
            )
        )
        return self._reply(ms, answer)


class Dense:
    """Everything from nothing for every question, on some pictures."""

    def __init__(self, scene: Scene, choose: Callable[[Scene], list[Frame]]):
        """choose: the pictures in the prompt, oldest first."""
        self._scene, self._choose, self._paid = scene, choose, []
        self._session = _Session(
            scene.vlm,
            scene.config.with_values(keyframe_interval_s=0.0),
            scene.camera,
            on_refresh=lambda _, refresh: self._paid.append(refresh),
        )

    def see(self, frame):
        """Nothing is done before a question."""
        return []

    def ask(self, question, now_ns):
        """Vision, prefill of everything, decode."""
        session, frames = self._session, self._choose(self._scene)
        self._paid.clear()
        session.reset()
        session.config = session.config.with_values(history_frames=len(frames) - 1)

        def run():
            for frame in frames:
                session.observe(frame, force=True)
            return session.ask(question, now_ns=now_ns)

        ms, answer = _timed(run)
        if len(session.frames) != len(frames):
            answer = Answer(
                Status.MODEL_ERROR,
                f'The prompt holds {len(session.frames)} of {len(frames)} pictures; '
                'the model or its chat template takes no more.',
            )
        return Reply(
            answer,
            session.frames,
            tuple(self._paid),
            _computed(self._paid),
            0,
            answer.tokens_reused + answer.tokens_prefilled,
            ms,
        )


class CachedCold:
    """From nothing on the very pictures that the default policy keeps: what its answer must be equal to."""

    def __init__(self, scene: Scene):
        self._policy = scene.policy

    def see(self, frame):
        """Nothing is done."""
        return []

    def ask(self, question, now_ns):
        """Beside the kept state, which stays as it is."""
        session = self._policy.session
        ms, answer = _timed(lambda: session.ask_cold(question, now_ns=now_ns))
        return Reply(answer, session.frames, (), session.cells, 0, answer.tokens_prefilled, ms)


class PromptCache:
    """mlx-vlm's own `generate` with one `PromptCacheState` for the whole bag, on the newest picture, in text."""

    def __init__(self, scene: Scene):
        self._scene, self._kept = scene, PromptCacheState()

    def see(self, frame):
        """Nothing is done."""
        return []

    def ask(self, question, now_ns):
        """A choice is the one that the text names; none is a parse failure."""
        vlm, config, frame = self._scene.vlm, self._scene.config, self._scene.window.newest
        question = questions.checked(question, config)
        model, processor = vlm._model, vlm._processor
        chat = [{'role': 'system', 'content': config.system_prompt}] if config.system_prompt else []
        prompt = apply_chat_template(
            processor, model.config, [*chat, {'role': 'user', 'content': question.text}], num_images=1
        )
        mx.random.seed(config.seed)
        ms, result = _timed(
            lambda: generate(
                model,
                processor,
                prompt,
                image=[Image.fromarray(frame.rgb)],
                max_tokens=question.max_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                prompt_cache_state=self._kept,
            )
        )
        ids = tuple(token for token in result.token_ids if token not in vlm.stop_ids)
        answer = Answer(
            Status.OK,
            text=result.text.strip(),
            choice_index=_named(result.text, question.choices),
            camera=self._scene.camera,
            model=vlm.name,
            token_ids=ids,
            tokens_generated=len(ids),
        )
        reused = result.cached_tokens
        return Reply(answer, (frame,), (), None, reused, result.prompt_tokens - reused, ms)


@dataclass(frozen=True)
class Arm:
    """An entry of the table.

    sees: the pictures in its prompt, and what is kept, for people. make: a runner on a camera.
    keeps_state: its answers depend on what it did before, so that a run that goes on must ask it everything again.
    observes: its `see` computes, so that what every picture cost it is recorded.
    """

    name: str
    sees: str
    make: Callable[[Scene], Runner]
    keeps_state: bool = False
    observes: bool = False


def _history_and_newest(scene):
    """What cold-dense sees: the default policy's keyframes, and the newest picture in the live one's place."""
    return [*scene.policy.session.frames[:-1], scene.window.newest]


def _newest(scene):
    return [scene.window.newest]


ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            'cold',
            'cold-dense: everything from nothing for every question, on the newest picture (behind the keyframes '
            'of default, where a history is kept). Every other arm is compared with it',
            lambda scene: Dense(scene, _history_and_newest),
        ),
        Arm('cold-again', 'the same once more: the noise floor', lambda scene: Dense(scene, _history_and_newest)),
        Arm(
            'default',
            "the engine's default policy: it looks at every picture as it comes, refreshes what the policy "
            'says, and answers from the kept state',
            Policy,
            keeps_state=True,
            observes=True,
        ),
        Arm(
            'cold-cached',
            'cold-dense on the very pictures that default has cached: equal to default, or default is not exact',
            CachedCold,
        ),
        Arm(
            'frame',
            'level frame for every question: nothing is done between questions, each pays for the newest picture',
            OnDemand,
            keeps_state=True,
        ),
        Arm(
            'patch',
            'the default policy with refresh_policy patch: of a changed picture only the changed cells are '
            'computed, which is approximate; an answer that is not sure enough is given again after a refresh',
            lambda scene: Policy(scene, refresh_policy=PATCH_POLICY),
            keeps_state=True,
            observes=True,
        ),
        Arm(
            'reuse',
            'level reuse alone: one state for everything until it is max_cell_age_s old, whatever changes',
            Held,
            keeps_state=True,
            observes=True,
        ),
        Arm(
            'low-rate',
            'low-frame-rate dense: from nothing on four pictures spread over the window, the newest the last',
            lambda scene: Dense(scene, lambda scene: scene.window.spread()),
        ),
        Arm(
            'last-4',
            'from nothing on the last four pictures',
            lambda scene: Dense(scene, lambda scene: scene.window.last()),
        ),
        Arm('newest', 'from nothing on the newest picture alone', lambda scene: Dense(scene, _newest)),
        Arm(
            'mlx-vlm',
            "mlx-vlm's generate with its own prompt cache, given the newest picture; it answers in text, also "
            'where there are choices',
            PromptCache,
            keeps_state=True,
        ),
    )
}


def replay_config(config: Config) -> Config:
    """The configuration of a replay: age, time and drift are measured, so nothing is refused for them, nor audited."""
    return config.with_values(max_age_s=86_400.0, timeout_s=3600.0, audit_share=0.0)


def make_runners(scene: Scene, names: tuple[str, ...]) -> dict[str, Runner]:
    """A runner for each name, in the order of the table; cold and default always."""
    scene.policy = ARMS[POLICY].make(scene)
    wanted = {REFERENCE, POLICY, *names}
    return {name: scene.policy if name == POLICY else arm.make(scene) for name, arm in ARMS.items() if name in wanted}


def _named(text: str, choices: tuple[str, ...]) -> int:
    """Which choice a text is, or begins with as the only one; -1: none."""
    said = plain(text)
    exact = [index for index, choice in enumerate(choices) if plain(choice) == said]
    begun = [index for index, choice in enumerate(choices) if f'{said} '.startswith(f'{plain(choice)} ')]
    return exact[0] if exact else begun[0] if len(begun) == 1 else -1


def _computed(refreshes) -> int:
    return sum(refresh.visual_tokens_refreshed for refresh in refreshes)


def _timed(call):
    started = time.perf_counter()
    result = call()
    return 1e3 * (time.perf_counter() - started), result
