"""A vision-language model loaded through mlx-vlm: run it on a cache, decode, score choices by logits."""

import gc
import json
import logging
import re
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_vlm
import numpy as np

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model import kv_cache
from vlm_reuse_node.model.families.base import Family, Grid, VisionState, family_for
from vlm_reuse_node.model.json_schema import JsonSchemas
from vlm_reuse_node.model.prompt import PromptTemplate

EMBEDDED = {'tabletop': Path(__file__).parents[1] / 'demo' / 'tabletop_model'}
HUB_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
# Tokens in one forward call. The same grid everywhere: K/V rows depend slightly on the shapes of the calls.
PREFILL_CHUNK = 512
# Files of a model above this size are told apart by name, size and time, not by content.
LARGE_FILE_BYTES = 10_000_000

_log = logging.getLogger(__name__)


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

    def see(self, rgb: np.ndarray, check: Callable[[], None] = lambda: None) -> tuple[mx.array, Grid]:
        """Run the image processor and the vision tower on a (height, width, 3) uint8 picture.

        Returns the features of its cells: mx (cells, width), evaluated; and its grid. `check` may raise between the
        two. Raises ImageError for a picture the model cannot take.
        """
        pixels, grid = self.family.prepare(rgb)
        check()
        features = self.family.encode(pixels, grid)
        mx.eval(features)
        return features, grid

    def see_all_cells(self, rgb: np.ndarray, check: Callable[[], None] = lambda: None) -> tuple[VisionState, Grid]:
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
        check: Callable[[], None] = lambda: None,
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
        check: Callable[[], None] = lambda: None,
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

    def rewrite(
        self,
        cache: list,
        ids: list[int],
        embeddings: mx.array,
        positions: np.ndarray,
        rows: np.ndarray,
        picture: np.ndarray,
        check: Callable[[], None] = lambda: None,
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
        check: Callable[[], None] = lambda: None,
        sample: Callable[[mx.array], int] | None = None,
        on_token: Callable[[list[int]], None] = lambda ids: None,
    ) -> list[int]:
        """Decode from the prompt's last logits, the first token at position `start`.

        sample: picks a token from logits, mx (vocabulary,), see `sampler`; greedily when None. on_token: called after
        each token with all of them. Returns the tokens without the one that ends the answer; `check` may raise before
        each.
        """
        sample = sample or _likeliest
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
        check: Callable[[], None] = lambda: None,
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


def sampler(temperature: float, top_p: float, seed: int) -> Callable[[mx.array], int]:
    """Pick tokens by chance from logits, mx (vocabulary,): the same ones for the same seed and the same logits.

    temperature: 0 picks the likeliest. top_p: only among the likeliest tokens that have this probability together.
    """
    if temperature == 0:
        return _likeliest
    key = mx.random.key(seed)

    def sample(logits):
        nonlocal key
        key, draw = mx.random.split(key)
        logits = logits / temperature
        order = mx.argsort(-logits)
        probabilities = mx.softmax(logits[order])
        # A token counts while those before it fall short of top_p, so there is always one.
        kept = mx.cumsum(probabilities) - probabilities < top_p
        return order[mx.random.categorical(mx.where(kept, logits[order], -mx.inf), key=draw)].item()

    return sample


class Noted:
    """A sampler that notes how likely its picks were.

    least: probability of the least likely token picked so far, the one that ended the answer included.
    """

    def __init__(self, sample: Callable[[mx.array], int]):
        """Pick with `sample`."""
        self._sample, self.least = sample, 1.0

    def __call__(self, logits: mx.array) -> int:
        """Pick from logits, mx (vocabulary,)."""
        token = self._sample(logits)
        self.least = min(self.least, mx.exp(logits[token] - mx.logsumexp(logits)).item())
        return token


def _likeliest(logits):
    return mx.argmax(logits).item()


def load(name: str) -> Vlm:
    """Load 'tabletop' (the embedded model), a model directory, or a hub name such as 'org/name'.

    On MLX's CPU backend half-precision weights are computed in float32, which is an order of magnitude faster there;
    elsewhere the weights keep their type. Python files that come with a model are never run. Raises ModelError with one
    sentence that says what to do.
    """
    folder = _folder(name)
    family = family_for(_model_type(folder))
    try:
        model, processor = mlx_vlm.load(str(folder), trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"The model in '{folder}' cannot be loaded by mlx-vlm: {_one_line(error)}. Expected the files "
            f'of one complete model; copy or convert it again (python -m mlx_vlm.convert).'
        ) from error
    if mx.default_device() == mx.Device(mx.cpu):
        model.set_dtype(mx.float32)
    given_folder = name not in EMBEDDED and Path(name).expanduser().is_dir()
    return Vlm(folder.name if given_folder else name, model, processor, family(model, processor), _fingerprint(folder))


def release_thread() -> None:
    """Give back what a model that is no longer used held; the last thing that a thread does which used or imported MLX.

    Models refer to themselves, so that only the garbage collector ends them. Without `clear_streams` MLX 0.32 may abort
    the process at its end (ml-explore/mlx issue 4327).
    """
    gc.collect()
    mx.clear_cache()
    mx.clear_streams()


def device_bytes() -> int:
    """What MLX holds now: arrays, and buffers it keeps for reuse. For any thread."""
    return mx.get_active_memory() + mx.get_cache_memory()


def _folder(name):
    """The local directory of a model, from the hub only for a name like 'org/name'."""
    path = EMBEDDED.get(name, Path(name).expanduser())
    if name.strip() and path.is_dir():
        return path.resolve()
    if HUB_NAME.fullmatch(name) and not path.exists():
        return _from_hub(name)
    raise ModelError(
        f"There is no model directory '{EMBEDDED.get(name, name)}'; expected 'tabletop', a directory with "
        f'config.json and *.safetensors, or a hub name such as '
        f"'mlx-community/Qwen2.5-VL-7B-Instruct-4bit'."
    )


def _from_hub(name):
    from huggingface_hub import snapshot_download
    from mlx_vlm.utils import get_model_path

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception:
        _log.warning("'%s' is no directory and not in the hub's cache of this host; asking the hub for it.", name)
    try:
        return get_model_path(name)
    except Exception as error:
        raise ModelError(
            f"The model '{name}' is neither a directory, nor in this host's hub cache, nor could the hub "
            f'give it: {_one_line(error)}. Download it first, or give a model directory.'
        ) from error


def _model_type(folder):
    """The model_type in config.json, when the directory holds a vision-language model."""
    try:
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
        model_type = config['model_type']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"'{folder}' is not a model directory: its config.json cannot be read ({_one_line(error)}). "
            f"Expected a directory in mlx-vlm's format."
        ) from error
    if 'model_file' in config:
        raise ModelError(
            f"The model in '{folder}' brings Python code of its own (model_file in config.json), which "
            'mlx-vlm would run; expected a model_type that mlx-vlm knows, and no such entry.'
        )
    if 'vision_config' not in config:
        raise ModelError(
            f"The model in '{folder}' ({model_type}) is a text-only model; expected a vision-language "
            f'model, such as Qwen2.5-VL.'
        )
    if not any(folder.glob('*.safetensors')):
        raise ModelError(f"'{folder}' has no *.safetensors files; expected the model's weights. Copy the whole model.")
    return model_type


def _fingerprint(folder):
    """Digest of every small file of the model, and of the weights' and large files' names, sizes and times."""
    digest = blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        status = path.stat()
        large = path.suffix == '.safetensors' or status.st_size > LARGE_FILE_BYTES
        digest.update(f'{path.name} {status.st_size} {status.st_mtime_ns if large else 0}'.encode())
        digest.update(b'' if large else path.read_bytes())
    return digest.hexdigest()


def _one_line(error):
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
