"""Every other vision-language model of mlx-vlm whose pictures are rows among the text's: reuse, frame and full.

Such a model counts one position per token, takes them from its cache, and looks back only. What a picture becomes in
the prompt is asked of the model's own processor; what its tokens are worth, of the model's `get_input_embeddings`.
Nothing is known of where in the picture a token looks, so a changed picture is computed anew as a whole.
"""

from importlib import import_module
from importlib.util import find_spec

import mlx.core as mx
import numpy as np
from mlx_vlm.models.base import to_mlx
from mlx_vlm.models.cache import make_prompt_cache
from mlx_vlm.prompt_utils import apply_chat_template
from mlx_vlm.utils import get_model_type
from PIL import Image

from vlm_reuse_node.errors import ImageError, ModelError
from vlm_reuse_node.model import noise
from vlm_reuse_node.model.families.base import Grid, even_chunks

# What a model refuses here would silently answer wrong: a second camera inherits the first one's positions.
KEPT_POSITIONS = ('_rope_deltas', '_position_ids')
# Both names of the token that a picture's features stand for.
IMAGE_TOKENS = ('image_token_index', 'image_token_id')
PROBE_PX = 64
# Of logits against the model's own, a share of their spread: above it they are wrong, however noisy the arithmetic is.
MOST_ERROR = 0.1
# Pixels of a picture to one that is compared, where the other axis is not shrunk: OpenCV skips rows then, not means.
MOST_SHRUNK = 8


class Span(Grid):
    """A picture's visual tokens, and all the tokens that the chat template's one becomes, separators too.

    rows x columns are exactly the visual tokens, in the shape nearest to the picture's. They say how finely two
    pictures are compared, not which token sees which pixels: this family's callers refresh all cells or none.
    """

    ids: tuple[int, ...]

    def __new__(cls, rows: int, columns: int, ids: tuple[int, ...]):
        """Lay out `rows * columns` visual tokens of the tokens `ids`."""
        span = super().__new__(cls, rows, columns)
        span.ids = ids
        return span

    def __eq__(self, other):
        """Two pictures with equally many visual tokens may have other separators."""
        return isinstance(other, Span) and self.ids == other.ids and tuple(self) == tuple(other)

    def __ne__(self, other):
        """Not the tuple's, which sees rows and columns only."""
        return not self == other

    def __hash__(self):
        """Agree with equality."""
        return hash((*self, self.ids))


class Family:
    """See `families.base.Family`."""

    cell_px = 28
    takes_mask = False  # some of these models overlook it
    encodes_cells = False

    def __init__(self, model, processor):
        """Serve a model and a processor as `mlx_vlm.load` returns them, after one small picture went through both.

        Raises ModelError with the reason when the model's answers could not be exact here.
        """
        self._model, self._processor, self._type = model, processor, model.config.model_type
        self._refuse_positions_kept()
        self._image_token = next(
            (token for name in IMAGE_TOKENS if (token := getattr(model.config, name, None)) is not None), None
        )
        self._text = apply_chat_template(processor, model.config, 'a', num_images=1)
        self._plain = list(processor.tokenizer(self._text)['input_ids'])
        self._placeholder = self._find_placeholder()
        self._probe()

    def prepare(self, rgb):
        """All that the processor returns beside tokens, as a dict, and the picture's Span."""
        try:
            inputs = self._processed(rgb)
            span = self._span(inputs)
        except (ValueError, ZeroDivisionError, IndexError) as error:
            raise _size_error(rgb, error) from error
        if self.slots(list(span)) != [len(span)]:
            raise _size_error(rgb, 'its tokens cannot be told from the text')
        height, width = rgb.shape[:2]
        rows, columns = _layout(span.count(self._image_token), height / width)
        shrunk = height / (rows * self.cell_px), width / (columns * self.cell_px)
        if max(shrunk) > MOST_SHRUNK and min(shrunk) < 1:
            raise _size_error(
                rgb,
                f'its {rows * columns} visual tokens make no rows and columns near its shape, so '
                'that small changes would not be seen',
            )
        return _pixels(inputs), Span(rows, columns, span)

    def encode(self, pixels, grid):
        """Features of the picture's visual tokens, mx (cells, hidden). Raises ImageError as `prepare` does."""
        try:
            return self._embeddings(grid.ids, pixels)[self._visual(grid.ids)]
        except ValueError as error:  # shapes that the processor lets through
            raise ImageError(
                'size',
                f'The model cannot take a picture of {grid.cells} visual tokens: {error}. '
                'Expected the ratio of a camera; try another size.',
            ) from error

    def slots(self, ids):
        """Right behind each picture's last token, its closing separators too."""
        images = [index for index, token in enumerate(ids) if token == self._image_token]
        if not self._is_expanded(ids, len(images)):
            return [index + 1 for index, token in enumerate(ids) if token == self._placeholder]
        gaps = [ids[here + 1 : following] for here, following in zip(images, images[1:])]
        last = [here for here, gap in zip(images, gaps) if self._parts_pictures(gap)] + images[-1:]
        return [index + 1 + len(self._tail) for index in last]

    def expand(self, ids, grids):
        """Each placeholder becomes its picture's tokens."""
        waiting = iter(grids)
        return [token for given in ids for token in (next(waiting).ids if given == self._placeholder else [given])]

    def positions(self, ids, grids):
        """Every token counts one."""
        return self.text_positions(0, len(ids))

    def text_positions(self, start, count):
        """Counting up on the one axis."""
        return np.arange(start, start + count, dtype=np.int32)[None]

    def embed(self, ids, features=None):
        """Token embeddings, mx (1, length, hidden)."""
        embeddings = self._embeddings(ids)
        if features is not None:
            embeddings[self._visual(ids)] = features.astype(embeddings.dtype)
        return embeddings[None]

    def chunks(self, ids, limit):
        """Every `limit` tokens: no token looks ahead."""
        return even_chunks(len(ids), limit)

    def forward(self, ids, embeddings, positions, cache, keep=1, mask=None):
        """Logits of the last `keep` tokens, mx (keep, vocabulary). Raises ModelError for positions of its own."""
        if mask is not None:
            raise ModelError(f'A {self._type} model was given a mask; expected none, because it may overlook it.')
        held = next((int(entry.offset) for entry in cache if hasattr(entry, 'offset')), None)
        if held is None or not np.array_equal(positions, self.text_positions(held, len(ids))):
            raise ModelError(
                f'The cache holds {held} tokens, and the next ones have the positions {positions[:, :1]} '
                f'and on; a {self._type} model takes positions from its cache. Build the state again.'
            )
        # Some models compute the whole vocabulary for all tokens unless told not to; the others ignore it.
        output = self._model.language_model(mx.array([ids]), inputs_embeds=embeddings, cache=cache, logits_to_keep=keep)
        return output.logits[0, -keep:].astype(mx.float32)

    def _embeddings(self, ids, pixels=None):
        """The model's own embeddings of tokens and of at most one picture among them: mx (length, hidden)."""
        pixels = dict(pixels or {})
        given = self._model.get_input_embeddings(
            mx.array([ids]), pixels.pop('pixel_values', None), mask=mx.ones((1, len(ids)), mx.int32), **pixels
        )
        more = sorted(name for name, value in given.to_dict().items() if value is not None and name != 'inputs_embeds')
        if more:
            self._refuse(
                f'its pictures give {", ".join(more)} beside embeddings (attention in both directions, cross '
                'attention, layers of their own)'
            )
        return given.inputs_embeds[0]

    def _visual(self, ids):
        return mx.array(np.flatnonzero(np.array(ids) == self._image_token))

    def _processed(self, rgb):
        # Not mlx_vlm.utils.prepare_inputs: it hands image processors arguments of tokenizers, which LLaVA's refuses.
        return to_mlx(self._processor(text=[self._text], images=[Image.fromarray(rgb)]))

    def _span(self, inputs):
        """The tokens in the placeholder's place, in the chat with a picture."""
        ids, before = np.array(inputs['input_ids'])[0].tolist(), self._plain.index(self._placeholder)
        after = len(ids) - (len(self._plain) - before - 1)
        span = tuple(ids[before:after])
        if ids[:before] + [self._placeholder] + ids[after:] != self._plain or self._image_token not in span:
            self._refuse('its processor changes more of a chat than the tokens of the picture')
        return span

    def _is_expanded(self, ids, images):
        if self._placeholder != self._image_token:
            return images > 0
        if self._tail:
            return (self._image_token, self._tail[0]) in zip(ids, ids[1:])
        return images >= self._fewest

    def _parts_pictures(self, gap):
        """Whether tokens between two visual tokens end a picture and begin another, or are inside of one."""
        tail, rest = tuple(gap[: len(self._tail)]), gap[len(self._tail) :]
        return bool(gap) and tail == self._tail and (not self._head or self._head[0] in rest)

    def _find_placeholder(self):
        tokens = [getattr(self._processor, name, None) for name in ('image_token', 'boi_token')]
        ids = [self._processor.tokenizer.convert_tokens_to_ids(token) for token in tokens if isinstance(token, str)]
        found = [token for token in (self._image_token, *ids) if self._plain.count(token) == 1]
        if self._image_token is None or not found:
            self._refuse('its chat template has no single token for a picture')
        return found[0]

    def _refuse_positions_kept(self):
        language = getattr(self._model, 'language_model', None)
        if language is None or not hasattr(self._model, 'get_input_embeddings'):
            self._refuse('it has no language_model and get_input_embeddings apart')
        kept = [name for name in KEPT_POSITIONS if hasattr(language, name)]
        if kept:
            self._refuse(f'it keeps positions in {", ".join(kept)}, which the next camera would inherit')

    def _probe(self):
        """Put one small picture through processor and model, learn what frames it, and refuse what is not exact."""
        noise = np.random.default_rng(0).integers(0, 256, (PROBE_PX, PROBE_PX, 3), dtype=np.uint8)
        try:
            inputs = self._processed(noise)
            span = self._span(inputs)
            self._learn(span)
            self._compare_rows(span, _pixels(inputs))
            self._compare_forward(span, _pixels(inputs))
        except ModelError:
            raise
        except Exception as error:  # of any of sixty model types
            self._refuse(f'a small picture does not go through it ({type(error).__name__}: {error})')

    def _learn(self, span):
        """What begins and ends a picture, and that it is found again in a prompt."""
        visual = [index for index, token in enumerate(span) if token == self._image_token]
        self._head, self._tail, self._fewest = span[: visual[0]], span[visual[-1] + 1 :], len(visual)
        before, grid = self._plain.index(self._placeholder), Span(1, len(visual), span)
        slots = self.slots(self._plain), self.slots(self.expand(self._plain, [grid]))
        if slots != ([before + 1], [before + len(span)]):
            self._refuse("a picture's tokens cannot be told from the text around them")

    def _compare_rows(self, span, pixels):
        """Refuse a model whose pictures are more than the embeddings of their image tokens."""
        text = mx.array([index for index, token in enumerate(span) if token != self._image_token], mx.int32)
        rows, plain = self._embeddings(span, pixels), self._embeddings(span)
        if text.size and not mx.array_equal(rows[text], plain[text]):
            self._refuse('its pictures change other rows than those of their image tokens')

    def _compare_forward(self, span, pixels):
        """Refuse a model whose own forward, in one call, is not what this file computes, cut inside the picture."""
        ids = self.expand(self._plain, [Span(1, span.count(self._image_token), span)])
        others = {name: value for name, value in pixels.items() if name != 'pixel_values'}
        theirs = self._model(mx.array([ids]), pixels['pixel_values'], mask=None, **others).logits[0].astype(mx.float32)
        embeddings = self.embed(ids, self._embeddings(span, pixels)[self._visual(span)])
        positions, middle = self.positions(ids, []), self._plain.index(self._placeholder) + len(span) // 2

        def ours(embeddings):
            cache = make_prompt_cache(self._model.language_model)
            return mx.concatenate(
                [
                    self.forward(ids[part], embeddings[:, part], positions[:, part], cache, keep=len(ids[part]))
                    for part in (slice(0, middle), slice(middle, len(ids)))
                ]
            )

        error = _share_of_spread(theirs, ours(embeddings))
        most = min(MOST_ERROR, noise.bound(embeddings, ours, distance=_share_of_spread))
        if not error < most:
            self._refuse(
                f'computed call by call its logits are {100 * error:.2g}% off its own forward, and rounding makes less '
                f'than {100 * most:.2g}%, so that its pictures are seen in both directions, or it takes more than '
                'embeddings'
            )

    def _refuse(self, reason):
        raise ModelError(
            f"The model's type '{self._type}' cannot be served exactly: {reason}. Choose a model of another type."
        )


def missing(model_type: str) -> str:
    """Return what mlx-vlm lacks to serve a type at all, '' when a model of it can be loaded and looked at."""
    name = get_model_type({'model_type': model_type}) or ''
    if not name.isidentifier() or find_spec(f'mlx_vlm.models.{name}') is None:
        return 'mlx-vlm knows no such model'
    model = getattr(import_module(f'mlx_vlm.models.{name}'), 'Model', None)
    return '' if hasattr(model, 'get_input_embeddings') else 'mlx-vlm gives no embeddings of its pictures'


def _share_of_spread(logits, others):
    """How far others are off these logits, (tokens, vocabulary), against their spread: the mean over the tokens."""
    (logits,), (others,) = noise.arrays(logits), noise.arrays(others)
    error = np.linalg.norm(others - logits, axis=-1) / np.linalg.norm(logits - logits.mean(), axis=-1)
    return float(error.mean())


def _pixels(inputs):
    """What a processor returns beside tokens."""
    tokens = ('input_ids', 'attention_mask', 'token_type_ids')
    return {name: value for name, value in inputs.items() if name not in tokens and value is not None}


def _layout(count, ratio):
    """The rows and columns of exactly `count` cells whose rows / columns is nearest to the picture's ratio."""
    sides = [rows for rows in range(1, count + 1) if count % rows == 0]
    rows = min(sides, key=lambda rows: abs(np.log(rows * rows / count / ratio)))
    return rows, count // rows


def _size_error(rgb, reason):
    height, width = rgb.shape[:2]
    return ImageError(
        'size',
        f'The model cannot take a picture of {width} x {height} pixels: {reason}. '
        f'Expected a ratio that cameras have and at least {PROBE_PX} pixels a side; try another.',
    )
