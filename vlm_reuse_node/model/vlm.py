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

"""A vision-language model loaded through mlx-vlm: run it on a cache, decode, score choices by their logits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from vlm_reuse_node.model import decoding, kv_cache, pass_cache
from vlm_reuse_node.model.device_memory import clear_between_chunks
from vlm_reuse_node.model.families.base import Family, Grid, VisionState
from vlm_reuse_node.model.json_schema import JsonSchemas
from vlm_reuse_node.model.pass_cache import PassCache
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.sampling import Sampler
from vlm_reuse_node.model.token_tree import TokenTree
from vlm_reuse_node.model.visual_tokens import limited
from vlm_reuse_node.model.work import Cost, Meter, Work

# Most tokens in one forward call, the same everywhere: keys and values depend slightly on the sizes of the calls.
PREFILL_CHUNK = 512

# Called between two steps of the model. Whatever it raises ends the work there.
Check = Callable[[], None]


def go_on() -> None:
    """Check nothing."""


class Vlm:
    """One loaded model. It belongs to the thread that loaded it, and holds no state of any camera.

    name: the model's name in answers: as it was given, for a directory its last part.
    fingerprint: digest of the model, its processor and its chat template. folder: its directory, None without one.
    precision: the types of the numbers it computes with, such as 'float32'. device: 'cpu', 'metal' or 'cuda'.
    stop_ids: tokens that end an answer. context: most tokens of prompt and answer together, None when not known.
    json_schemas: compiles JSON schemas for the model's tokenizer.
    meter: counts every step of the model; no step escapes it.
    decodes_ahead: whether a step is queued before its token is read, see `decoding`: on a device with its own queue.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        processor: Any,
        family: Family,
        fingerprint: str,
        folder: Path | None = None,
        thinking: bool = False,
    ) -> None:
        """Wrap the model and the processor that `mlx_vlm.load` returned.

        thinking: whether it answers in free text with thoughts, see `PromptTemplate`.
        """
        self.name = name
        self.family = family
        self.fingerprint = fingerprint
        self.folder = folder
        self._thinking = thinking
        self.precision = _precision(model, family)
        self.device = _device()
        self.meter = Meter()
        self._templates: dict[str, PromptTemplate] = {}  # with one picture, by system text
        self.decodes_ahead = mx.default_device().type == mx.gpu
        self._model = model
        self._processor = processor
        self.context: int | None = getattr(getattr(model.config, 'text_config', None), 'max_position_embeddings', None)
        self.stop_ids = tuple(sorted(processor.tokenizer.stopping_criteria.eos_token_ids))
        self.json_schemas = JsonSchemas(processor.tokenizer, self.stop_ids)

    def template(self, system: str, pictures: int) -> PromptTemplate:
        """Return the chat with a system text ('': the template's own) and a number of pictures, as it is today.

        Raises ModelError for a chat template that cannot be used, ConfigError for special tokens in `system`.
        """
        known = self._templates.get(system)
        if known is None or not known.is_current():
            known = PromptTemplate(self._processor, self._model.config, self.family, system, 1, self._thinking)
            self._templates[system] = known
        return known.of(pictures)

    def with_visual_tokens(self, most: int) -> 'Vlm':
        """Return the same model that sees pictures in about `most` tokens at most. Raises ModelError as `limited` does.

        The weights are shared; meter and templates are its own.
        """
        processor = limited(self._processor, self._model.config, most)
        family = type(self.family)(self._model, processor)
        return Vlm(self.name, self._model, processor, family, self.fingerprint, self.folder, self._thinking)

    def new_cache(self) -> list:
        """Return an empty cache. Raises ModelError for a kind that cannot be restored."""
        return kv_cache.new_cache(self._model.language_model)

    def grid(self, rgb: np.ndarray) -> Grid:
        """Return the grid of a (height, width, 3) uint8 picture. No model runs. Raises ImageError as `see` does."""
        return self.family.prepare(rgb)[1]

    def see(self, rgb: np.ndarray, check: Check = go_on) -> tuple[mx.array, Grid]:
        """Run the image processor and the vision tower on a (height, width, 3) uint8 picture.

        Returns the features of the cells, mx (cells, width), evaluated; and the grid. `check` may raise between
        processor and tower. Raises ImageError for a picture that the model cannot take.
        """
        pixels, grid = self.family.prepare(rgb)
        check()
        with self._metered(self.meter.see, vision=grid.cells):
            features = self.family.encode(pixels, grid)
            mx.eval(features)
        return features, grid

    def see_all_cells(self, rgb: np.ndarray, check: Check = go_on) -> tuple[VisionState, Grid]:
        """`see` that returns the whole vision state, evaluated, which `see_cells` needs; and the grid."""
        pixels, grid = self.family.prepare(rgb)
        check()
        with self._metered(self.meter.see, vision=grid.cells):
            vision = self.family.encode_cells(pixels, grid, np.arange(grid.cells), None)
            mx.eval(vision)
        return vision, grid

    def see_cells(
        self,
        rgb: np.ndarray,
        grid: Grid,
        cells: np.ndarray,
        older: VisionState,
        check: Check = go_on,
    ) -> VisionState:
        """`see` for some cells of a picture; the others stay what they are in an older one of the same size.

        grid: of both pictures. cells: (cells,) numbers, ascending. older: the older picture's vision state. Returns the
        new vision state, evaluated.
        """
        pixels = self.family.prepare_cells(rgb, grid, cells)
        check()
        with self._metered(self.meter.see_cells, vision=len(cells)):
            vision = self.family.encode_cells(pixels, grid, cells, older)
            mx.eval(vision)
        return vision

    def run(
        self,
        cache: list,
        ids: list[int],
        positions: np.ndarray,
        *,
        embeddings: mx.array | None = None,
        keep: int = 1,
        check: Check = go_on,
    ) -> mx.array:
        """Add tokens to the cache, chunk by chunk; `check` may raise between two chunks.

        positions: (axes, length). embeddings: mx (1, length, width); None: those of the tokens.
        Returns the logits of the last `keep` tokens, mx (keep, vocabulary), evaluated.
        """
        if embeddings is None:
            embeddings = self.family.embed(ids)
        kept = []
        for number, part in enumerate(self.family.chunks(ids, PREFILL_CHUNK)):
            check()
            if number:
                clear_between_chunks()
            wanted = range(max(part.start, len(ids) - keep) - part.stop, 0)  # from the chunk's end
            with self._metered(self.meter.read, prefill=len(ids[part])):
                logits = self.family.forward(ids[part], embeddings[:, part], positions[:, part], cache, wanted or (-1,))
                mx.eval(logits)  # every layer's keys and values with it
            if wanted:
                kept.append(logits)
        return mx.concatenate(kept) if len(kept) > 1 else logits

    def read(self, cache: list, ids: list[int], start: int, check: Check = go_on) -> mx.array:
        """Add text tokens to the cache, the first at position `start`; see `run`."""
        return self.run(cache, ids, self.family.text_positions(start, len(ids)), check=check)

    def run_tree(
        self,
        cache: list,
        tree: TokenTree,
        ids: list[int],
        embeddings: mx.array,
        positions: np.ndarray,
        keep: Sequence[int],
        before: Sequence[Any] | None = None,
    ) -> tuple[mx.array, list[PassCache]]:
        """Run the tokens of a tree on the cache, in one call.

        cache: one for which `pass_cache.is_possible`. ids, embeddings, positions: of all tokens of the tree.
        keep: numbers of the tokens whose logits are wanted. before: see `pass_cache.stand_ins`.
        Returns their logits, mx (kept, vocabulary), evaluated; and the stand-ins, which cut the cache (`keep`).
        """
        parts = pass_cache.stand_ins(cache, tree, before)
        with self._metered(self.meter.read, prefill=len(ids)):
            logits = self.family.forward(ids, embeddings, positions, parts, keep or (-1,))
            mx.eval([part.arrays for part in parts], logits if keep else [])
        return logits, parts

    def decode(
        self,
        cache: list,
        logits: mx.array,
        start: int,
        max_tokens: int,
        check: Check = go_on,
        sample: Sampler = Sampler(),
        on_token: Callable[[list[int]], None] = lambda ids: None,
        draft: Sequence[int] = (),
        keep: Callable[[int], None] = lambda tokens: None,
    ) -> list[int]:
        """Decode an answer behind the tokens in the cache, see `decoding.decode`. Returns its tokens."""
        return decoding.decode(
            partial(self.family.step, cache=cache),
            logits,
            start,
            max_tokens,
            stop_ids=self.stop_ids,
            meter=self.meter,
            ahead=self.decodes_ahead,
            check=check,
            sample=sample,
            on_token=on_token,
            draft=draft,
            keep=keep,
        )

    def shares(self, end: mx.array, choices: Sequence[tuple[list[int], mx.array]]) -> tuple[float, ...]:
        """Return the probability of each choice, among the choices, as the whole answer to a prompt.

        A choice's score is the log-probability of its tokens and of ending there (with any stop token): without the
        end, 'yes' could never lose to 'yes it is'. A softmax over the scores gives the probabilities.
        end: the prompt's last logits, mx (1, vocabulary). choices: tokens of each, and their logits behind the prompt.
        """
        scores = [self._log_probability(ids, mx.concatenate([end, later])) for ids, later in choices]
        totals = np.array(mx.stack(scores), np.float64)
        shares = np.exp(totals - totals.max())
        return tuple((shares / shares.sum()).tolist())

    def _log_probability(self, ids: list[int], logits: mx.array) -> mx.array:
        """Log-probability of a whole answer, mx (). logits: before each token and behind the last, mx (n + 1, v)."""
        table = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        tokens = table[mx.arange(len(ids)), mx.array(ids)].sum()
        return tokens + mx.logsumexp(table[-1, mx.array(self.stop_ids)])

    @contextmanager
    def _metered(self, cost: Cost, vision: int = 0, prefill: int = 0, decode: int = 0) -> Iterator[None]:
        """Count the tokens and the time of one step. A step that fails counts too."""
        started_s = self.meter.clock()
        try:
            yield
        finally:
            passes = int(prefill + decode > 0)
            work = Work(vision, prefill, decode, 1e3 * (self.meter.clock() - started_s), passes)
            self.meter.done += work
            cost.learn(work.tokens, work.ms)

    def text(self, ids: list[int]) -> str:
        """Return the words of an answer's tokens."""
        return self._processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _precision(model: Any, family: Family) -> str:
    """The floating-point types among a model's parameters and of its embeddings, joined with '+'."""
    parameters = cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))
    types = {value.dtype for _, value in parameters} | {family.embed([0]).dtype}
    return '+'.join(sorted(str(kind).removeprefix('mlx.core.') for kind in types if mx.issubdtype(kind, mx.floating)))


def _device() -> str:
    """What MLX computes on: 'cpu', 'metal' or 'cuda'."""
    if mx.default_device().type != mx.gpu:
        return 'cpu'
    return 'metal' if mx.metal.is_available() else 'cuda'
