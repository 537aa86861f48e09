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

"""docs/models.md: every vision-language model type of mlx-vlm, made from the package itself.

`python test/test_model_table.py` writes it anew.
"""

import inspect
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import mlx_vlm.models
import pytest
import test_generic_family
import test_seeing
from mlx_vlm.version import __version__ as VERSION

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model.families.base import FAMILIES, family_for
from vlm_reuse_node.model.families.kept_positions import KEPT, RULE
from vlm_reuse_node.model.families.model_types import missing, vision_module

FILE = Path(__file__).parents[1] / 'docs' / 'models.md'
# Of the generic family, those of which a tiny model is loaded, asked and compared by tests.
RUN = {*test_generic_family.TYPES, *test_seeing.TYPES} - {*FAMILIES}
# Refused when a tiny model of it is loaded by a test, and why.
REFUSED = {name: reason for name, (_, reason) in test_seeing.REFUSED.items()}
# Refused at load for a reason that its source tells better than its attributes.
HUNYUAN = 'its layers take the positions of a picture only from the first call of a prompt'
ONE = ', one picture at a time (no history)'
HEAD = f"""# Models

Every vision-language model type of mlx-vlm {VERSION}, by the name of its package there, and what happens at load.
`reuse`, `patch`, `frame` and `full` are the levels of a refresh (docs/architecture.md). A test makes this table from
the package. Only what it calls *run* was run: a tiny model with random weights, loaded, asked and compared with
`mlx_vlm.generate`. The released weights were not.
At load every model of the generic family is compared with `mlx_vlm.generate` on small pictures, one and two. It is
refused in one sentence if its answers differ by more than rounding. So *tried at load* is no promise.
What is set at load, such as the size of pictures, is in [loading.md](loading.md).

## What exact means

`exact` in an answer says: the state that answered is the one that is computed from nothing (cold) on the picture of
`cached_stamp`, in the same precision and in the same cuts of the prompt. The promise is the same for all weights:

- The answer has the tokens of a cold answer. Two tokens that are equally probable within the noise may change places.
- Log-probabilities differ by less than the noise of the arithmetic in use. It is measured, not assumed
  ([noise.py](../vlm_reuse_node/model/noise.py)): the input is moved by its last digit, and what comes out is compared.
- A question leaves the state as it was, bit for bit.

`mlx_vlm.generate` cuts a prompt in other places than we do, so against it there is a difference even when nothing is
reused. Measured on a CPU with tiny models with random weights (Qwen2.5-VL, Qwen3-VL, Qwen3.5, Gemma 4; four questions
each, answers of equal tokens counted):

| weights | computed in | choices, warm and cold | texts, `generate` and cold | its noise up to | equal answers |
|---|---|---|---|---|---|
| float32 | float32 | 0 | 1.4e-5 | 2.3e-4 | 16 of 16 |
| float16 | float16 | 0 | 0.013 | 1.1 | 16 of 16 |
| bfloat16 | bfloat16 | 0 | 0.017 | 11 | 16 of 16 |
| 8-bit | float32 | 0 | 1.7e-5 | 3.3e-4 | 16 of 16 |
| 4-bit | float32 | 0 | 1.8e-5 | 4.2e-4 | 16 of 16 |
| mxfp4 | float32 | 0 | 1.9e-5 | 3.5e-4 | 16 of 16 |

The figures are the largest differences of log-probabilities. In half precision the noise of such models is larger than
any difference, so there it is the equal answers that count. On Metal and CUDA quantised weights compute in half
precision. Your model on your machine: [check.md](check.md). LLaVA is missing, because `generate` fails on it in mlx-vlm
0.7.10.

## Types

| type | what happens | levels | known from |
|---|---|---|---|
"""


def types():
    """All packages of mlx-vlm that see."""
    return [part.name for part in iter_modules(mlx_vlm.models.__path__) if part.ispkg and vision_module(part.name)]


def keeps_positions(name):
    """Whether the language model keeps positions as an attribute and has no rule for them, by its source."""
    language = getattr(vision_module(name), 'LanguageModel', None)
    source = inspect.getsource(import_module(language.__module__)) if language else ''
    return any(f'self.{kept} =' in source for kept in KEPT) and not hasattr(language, RULE)


def row(name):
    """What happens with a type, its levels, and how that is known."""
    if name in FAMILIES:
        family = family_for(name)
        levels = 'reuse, patch, frame, full' if family.encodes_cells else 'reuse, frame, full'
        return 'a family of its own', levels, 'run'
    if name in RUN:
        return f'generic family{ONE * (name in test_seeing.ONE_PICTURE)}', 'reuse, frame, full', 'run'
    if name in REFUSED:
        return f'refused: {REFUSED[name]}', '', 'run'
    if reason := missing(name):
        return f'refused: {reason}', '', 'run without a model'
    if name == 'hunyuan_vl':
        return f'refused: {HUNYUAN}', '', "mlx-vlm's source"
    if keeps_positions(name):
        return 'refused: it keeps positions, which the next camera would inherit', '', "mlx-vlm's source"
    return 'generic family, if the check at load finds no fault', 'reuse, frame, full', 'tried at load, not run here'


def table():
    """The whole page."""
    return HEAD + ''.join(f'| `{name}` | {" | ".join(row(name))} |\n' for name in types())


def test_the_page_is_what_the_package_says():
    assert FILE.read_text() == table(), 'run python test/test_model_table.py'


def test_every_family_and_every_type_that_is_run_is_in_it():
    assert {*FAMILIES, *RUN, *REFUSED} <= {*types()}


@pytest.mark.parametrize('name', [name for name in types() if name not in FAMILIES and missing(name)])
def test_a_type_without_embeddings_of_pictures_is_refused_before_anything_is_loaded(name):
    with pytest.raises(ModelError, match='gives no embeddings of its pictures'):
        family_for(name)


if __name__ == '__main__':
    FILE.write_text(table())
    sys.stdout.write(f'{FILE} has {len(types())} types\n')
