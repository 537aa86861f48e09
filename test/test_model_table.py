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
from vlm_reuse_node.model.families.generic import KEPT_POSITIONS, missing, vision_module

FILE = Path(__file__).parents[1] / 'docs' / 'models.md'
# Of the generic family, those of which a tiny model is loaded, asked and compared by tests.
RUN = {*test_generic_family.TYPES, *test_seeing.TYPES} - {*FAMILIES}
# Refused when a tiny model of it is loaded by a test, and why.
REFUSED = {'idefics2': 'its processor changes the text behind a picture'}
HEAD = f"""# Models

Every vision-language model type of mlx-vlm {VERSION}, by the name of its package there, and what happens at load.
`reuse`, `patch`, `frame` and `full` are the levels of a refresh (docs/architecture.md). A test makes this table from
the package. Only what it calls *run* was run: a tiny model with random weights, loaded, asked and compared with
`mlx_vlm.generate`. The released weights were not.
At load every model of the generic family is compared with `mlx_vlm.generate` on small pictures, one and two. It is
refused in one sentence if its answers differ by more than rounding. So *tried at load* is no promise.
A `patch` of `qwen3_5` and `qwen3_5_moe` computes the prompt from a checkpoint of their recurrent layers on. It is never
exact: every block of their vision tower looks at the whole picture, so one changed pixel changes the features of all
cells, and with all of them computed anew there would be nothing to skip.

| type | what happens | levels | known from |
|---|---|---|---|
"""


def types():
    """All packages of mlx-vlm that see."""
    return [part.name for part in iter_modules(mlx_vlm.models.__path__) if part.ispkg and vision_module(part.name)]


def keeps_positions(name):
    """Whether the language model keeps positions as an attribute, by its source."""
    language = getattr(vision_module(name), 'LanguageModel', None)
    source = inspect.getsource(import_module(language.__module__)) if language else ''
    return any(f'self.{kept} =' in source for kept in KEPT_POSITIONS)


def row(name):
    """What happens with a type, its levels, and how that is known."""
    if name in FAMILIES:
        family = family_for(name)
        levels = 'reuse, patch, frame, full' if family.encodes_cells else 'reuse, frame, full'
        return 'a family of its own', levels, 'run'
    if name in RUN:
        return 'generic family', 'reuse, frame, full', 'run'
    if name in REFUSED:
        return f'refused: {REFUSED[name]}', '', 'run'
    if reason := missing(name):
        return f'refused: {reason}', '', 'run without a model'
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
