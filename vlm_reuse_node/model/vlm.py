"""A vision-language model loaded through mlx-vlm: run it on a cache, decode, score choices by logits."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from vlm_reuse_node.model import kv_cache
from vlm_reuse_node.model.families.base import Family, Grid, VisionState
from vlm_reuse_node.model.json_schema import JsonSchemas
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.sampling import likeliest

# Tokens in one forward call. The same grid everywhere: K/V rows depend slightly on the shapes of the calls.
PREFILL_CHUNK = 512


# Called between two steps of the model; whatever it raises ends the work there.
Check = Callable[[], None]


def go_on() -> None:
    """Nothing to check."""


class Vlm:
    """One loaded model. It belongs to the thread that loaded it, and holds no state of any camera.

    name: what answers call the model: as it was given, of a directory the last part.
    fingerprint: digest of the model, its processor and its chat template.
    stop_ids: tokens that end an answer. context: most tokens of prompt and answer together, None when not known.
    json_schemas: of its tokenizer.
    """

    def __init__(self, name: str, model: Any, processor: Any, family: Family, fingerprint: str):
        """Wrap what `mlx_vlm.load` returned."""
        self.name, self.family, self.fingerprint = name, family, fingerprint
        self._model, self._processor = model, processor
        self.context: int | None = getattr(getattr(model.config, 'text_config', None), 'max_position_embeddings', None)
        self.stop_ids = tuple(sorted(processor.tokenizer.stopping_criteria.eos_token_ids))
        self.json_schemas = JsonSchemas(processor.tokenizer, self.stop_ids)

    def template(self, system: str, pictures: int) -> PromptTemplate:
        """The chat with a system text ('': the template's own) and a number of pictures."""
        return PromptTemplate(self._processor, self._model.config, self.family, system, pictures)

    def new_cache(self) -> list:
        """An empty cache. Raises ModelError for a kind that cannot be restored."""
        return kv_cache.new_cache(self._model.language_model)

    def see(self, rgb: np.ndarray, check: Check = go_on) -> tuple[mx.array, Grid]:
        """Run the image processor and the vision tower on a (height, width, 3) uint8 picture.

        Returns the features of its cells: mx (cells, width), evaluated; and its grid. `check` may raise between the
        two. Raises ImageError for a picture the model cannot take.
        """
        pixels, grid = self.family.prepare(rgb)
        check()
        features = self.family.encode(pixels, grid)
        mx.eval(features)
        return features, grid

    def see_all_cells(self, rgb: np.ndarray, check: Check = go_on) -> tuple[VisionState, Grid]:
        """`see`, with what `see_cells` needs: what to keep, evaluated, and the grid."""
        pixels, grid = self.family.prepare(rgb)
        check()
        vision = self.family.encode_cells(pixels, grid, np.arange(grid.cells), None)
        mx.eval(vision)
        return vision, grid

    def see_cells(
        self,
        rgb: np.ndarray,
        grid: Grid,
        cells: np.ndarray,
        kept: VisionState,
        check: Check = go_on,
    ) -> VisionState:
        """`see` for some cells of a picture, in the surroundings kept of an older one of the same size.

        grid: of both. cells: their numbers, ascending. Returns what to keep, evaluated.
        """
        pixels = self.family.prepare_cells(rgb, grid, cells)
        check()
        vision = self.family.encode_cells(pixels, grid, cells, kept)
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

        positions: (axes, length). embeddings: mx (1, length, hidden), the tokens' own when None.
        Returns the logits of the last `keep` tokens (of the last chunk): mx (keep, vocabulary), evaluated.
        """
        if embeddings is None:
            embeddings = self.family.embed(ids)
        for part in self.family.chunks(ids, PREFILL_CHUNK):
            check()
            logits = self.family.forward(ids[part], embeddings[:, part], positions[:, part], cache, keep)
            mx.eval(logits)  # every layer's keys and values with it
        return logits

    def read(self, cache: list, ids: list[int], start: int, check: Check = go_on) -> mx.array:
        """Add text tokens to the cache, the first at position `start`; see `run`."""
        return self.run(cache, ids, self.family.text_positions(start, len(ids)), check=check)

    def rewrite(
        self,
        cache: list,
        ids: list[int],
        embeddings: mx.array,
        positions: np.ndarray,
        rows: np.ndarray,
        picture: np.ndarray,
        check: Check = go_on,
    ) -> None:
        """Compute tokens of one picture that the cache holds anew, see `Family.rewrite`.

        `check` may raise between two chunks: then some of them are new, and others are not.
        """
        for part in self.family.chunks(ids, PREFILL_CHUNK):
            check()
            self.family.rewrite(ids[part], embeddings[:, part], positions[:, part], rows[part], picture, cache)
            mx.eval([(layer.keys, layer.values) for layer in cache])  # not the logits: nobody asks for them

    def decode(
        self,
        cache: list,
        logits: mx.array,
        start: int,
        max_tokens: int,
        check: Check = go_on,
        sample: Callable[[mx.array], int] | None = None,
        on_token: Callable[[list[int]], None] = lambda ids: None,
    ) -> list[int]:
        """Decode from the prompt's last logits, the first token at position `start`.

        sample: picks a token from logits, mx (vocabulary,), see `sampling.sampler`; greedily when None. on_token:
        called after each token with all of them. Returns the tokens without the one that ends the answer; `check` may
        raise before each.
        """
        sample = sample or likeliest
        ids: list[int] = []
        while True:
            check()
            token = sample(logits[-1])
            if token in self.stop_ids:
                return ids
            ids.append(token)
            on_token(ids)
            if len(ids) == max_tokens:
                return ids
            logits = self.run(cache, [token], self.family.text_positions(start + len(ids) - 1, 1))

    def score(
        self,
        cache: list,
        logits: mx.array,
        start: int,
        choices: list[list[int]],
        check: Check = go_on,
    ) -> tuple[float, ...]:
        """Probability of each choice, among the choices, as the whole answer to the prompt in the cache.

        A choice's score is the log-probability of its tokens and of ending there (any stop token): without the end,
        'yes' could never lose to 'yes it is'. Scores are normalised by softmax. The prompt is computed once, and the
        choices in one forward call behind it, blind to each other; one call each where the family takes no mask.
        The cache is as it was afterwards. logits: the prompt's last, mx (1, vocabulary).
        """
        prompt = kv_cache.take(cache)
        together = self.family.takes_mask and sum(map(len, choices)) <= PREFILL_CHUNK
        groups = [choices] if together else [[ids] for ids in choices]
        totals = []
        for group in groups:
            check()
            later = (
                self._side_by_side(cache, group, start)
                if together
                else self.run(cache, group[0], self.family.text_positions(start, len(group[0])), keep=len(group[0]))
            )
            kv_cache.restore(cache, prompt)
            for ids in group:
                own, later = later[: len(ids)], later[len(ids) :]
                table = mx.concatenate([logits[-1:], own])  # (length + 1, vocabulary)
                table = table - mx.logsumexp(table, axis=-1, keepdims=True)
                tokens = table[mx.arange(len(ids)), mx.array(ids)].sum()
                totals.append(tokens + mx.logsumexp(table[-1, mx.array(self.stop_ids)]))
        totals = np.array(mx.stack(totals), np.float64)
        shares = np.exp(totals - totals.max())
        return tuple((shares / shares.sum()).tolist())

    def _side_by_side(self, cache, choices, start):
        """Logits of all choices' tokens in one call: each sees the prompt and itself, at the positions it has alone."""
        owner = np.repeat(np.arange(len(choices)), [len(ids) for ids in choices])
        among = (owner[:, None] == owner[None]) & np.tri(len(owner), dtype=bool)
        held = kv_cache.take(cache).tokens
        mask = mx.array(np.concatenate([np.ones((len(owner), held), bool), among], axis=1))
        ids = [token for choice in choices for token in choice]
        positions = np.concatenate([self.family.text_positions(start, len(choice)) for choice in choices], axis=1)
        logits = self.family.forward(ids, self.family.embed(ids), positions, cache, keep=len(ids), mask=mask)
        mx.eval(logits)
        return logits

    def text(self, ids: list[int]) -> str:
        """The words of an answer's tokens."""
        return self._processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
