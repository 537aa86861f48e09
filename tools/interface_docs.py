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

"""Write the tables of the docs: interfaces from the interface files, parameters from config.py, the engine's API.

It does not change the text outside the tables.

python tools/interface_docs.py
"""

import ast
import re
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from vlm_reuse_node.config import Config  # noqa: E402

PAGES = [*(ROOT / 'docs' / name for name in ('interfaces.md', 'parameters.md', 'engine.md')), ROOT / 'README.md']
FOLDER = ROOT / 'vlm_reuse_interfaces'
PARTS = {'.msg': ('',), '.srv': ('request', 'response'), '.action': ('goal', 'result', 'feedback')}
BLOCK = re.compile(r'<!-- table: (\S+) -->\n(.*?)<!-- /table -->', re.S)
# All parameters, or those that are named.
PARAMETERS = re.compile(r'<!-- parameters: ([\w ]+) -->\n(.*?)<!-- /parameters -->', re.S)

# A function of a file of the package, or a class and some of its functions.
API = re.compile(r'<!-- api: (\S+) (\w+)([\w ]*) -->\n(.*?)<!-- /api -->', re.S)


def interfaces() -> list[str]:
    """Return every message, service and action, such as 'msg/Answer.msg'."""
    return sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob('*/*') if path.suffix in PARTS)


def table(name: str) -> str:
    """Return the table of one interface file: every field and constant, with its type, default and comment."""
    path = FOLDER / name
    parts = path.read_text().split('\n---\n')
    lines = []
    for part, text in zip(PARTS[path.suffix], parts, strict=True):
        rows = [f'| {row} |' for row in map(' | '.join, declarations(text))]
        lines += [f'{part.capitalize()}:', ''] if part else []
        lines += ['| field | type | default | what |', '|---|---|---|---|', *rows, '']
    return '\n'.join(lines).rstrip() + '\n'


def declarations(text: str) -> list[tuple[str, str, str, str]]:
    """Return (name, type, default or value, comment) of each declaration; a comment may continue on the next lines."""
    rows: list[tuple[str, str, str, str]] = []
    for line in text.splitlines():
        declared, _, comment = line.partition('#')
        words = declared.split(maxsplit=2)
        if not words and line[:1].isspace() and rows:
            rows[-1] = (*rows[-1][:3], f'{rows[-1][3]} {comment.strip()}'.strip())
        elif words:
            kind, name, *default = words
            is_constant = default and default[0].startswith('=')
            value = default[0].lstrip('= ').strip() if default else ''
            rows.append((f'`{name}`', f'{kind}' + (', constant' if is_constant else ''), value, comment.strip()))
    return rows


def parameter_table(names: str) -> str:
    """Return the table of some parameters by name, or of 'all', in the order of config.py."""
    known = {parameter.name: parameter for parameter in fields(Config)}
    rows = [parameter_row(known[name]) for name in (known if names == 'all' else names.split())]
    return '\n'.join(['| parameter | default | range | live | what |', '|---|---|---|---|---|', *rows]) + '\n'


def parameter_row(parameter: Field) -> str:
    """Return one row: name, default, range or choices, whether it may change while the model is loaded, description."""
    default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    low, high, choices = (parameter.metadata[key] for key in ('low', 'high', 'choices'))
    values = ' or '.join(choices) if choices else '' if low is None else f'{low} to {high}'
    live = 'yes' if parameter.metadata['live'] else 'no'
    return f'| `{parameter.name}` | `{default}` | {values} | {live} | {parameter.metadata["description"]} |'


def api(file: str, name: str, functions: list[str]) -> str:
    """Return the signature and the docstring of a function, or of a class, with its fields and these functions."""
    source = (ROOT / 'vlm_reuse_node' / file).read_text()
    lines, named = source.splitlines(), by_name(ast.parse(source))
    parts = [declaration(lines, named[name])]
    if isinstance(named[name], ast.ClassDef):
        # A record's fields, and the members of an enumeration.
        held = [node for node in named[name].body if isinstance(node, (ast.AnnAssign, ast.Assign))]
        parts += ['\n'.join(line for node in held for line in lines[node.lineno - 1 : node.end_lineno])]
        parts += [declaration(lines, by_name(named[name])[function]) for function in functions]
    return '```python\n' + '\n\n'.join(part for part in parts if part) + '\n```\n'


def by_name(parent: ast.Module | ast.ClassDef) -> dict[str, Any]:
    """Return the functions and classes in a file or class; of a property its getter, which comes first."""
    named = [node for node in parent.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {node.name: node for node in reversed(named)}


def declaration(lines: list[str], node: Any) -> str:
    """Return the source of a function or class from its decorators to the end of its docstring."""
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return '\n'.join(lines[first - 1 : node.body[0].end_lineno])


def page(text: str) -> str:
    """Return a page with every table as the files have it now."""
    text = BLOCK.sub(lambda block: f'<!-- table: {block[1]} -->\n{table(block[1])}<!-- /table -->', text)
    text = API.sub(
        lambda block: (
            f'<!-- api: {block[1]} {block[2]}{block[3]} -->\n{api(block[1], block[2], block[3].split())}<!-- /api -->'
        ),
        text,
    )
    return PARAMETERS.sub(
        lambda block: f'<!-- parameters: {block[1]} -->\n{parameter_table(block[1])}<!-- /parameters -->', text
    )


def main() -> int:
    """Rewrite the pages."""
    for path in PAGES:
        path.write_text(page(path.read_text()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
