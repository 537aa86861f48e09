"""The README says what the code does."""

import re
from dataclasses import fields
from pathlib import Path

from vlm_reuse_node.config import Config

README = (Path(__file__).parent.parent / 'README.md').read_text()


def row_of(parameter) -> str:
    """One line of the README's table of parameters."""
    default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    low, high, choices = (parameter.metadata[key] for key in ('low', 'high', 'choices'))
    values = ' or '.join(choices) if choices else '' if low is None else f'{low} to {high}'
    live = 'yes' if parameter.metadata['live'] else 'no'
    return f'| `{parameter.name}` | `{default}` | {values} | {live} | {parameter.metadata["description"]} |'


def test_the_table_of_parameters_is_the_code():
    """Every parameter with its default, range and description, in order, and no other."""
    table = README.split('<!-- parameters -->')[1].split('<!-- /parameters -->')[0].strip().splitlines()
    assert table[2:] == [row_of(parameter) for parameter in fields(Config)]


def test_what_the_readme_links_to_is_there():
    """Pictures and files; and the figures are filled in."""
    root = Path(__file__).parent.parent
    linked = re.findall(r'\]\(([^)#]+)\)', README)
    assert linked and [name for name in linked if not (root / name).exists()] == []
    assert len(README.split('<!-- measured -->')[1].split('<!-- /measured -->')[0].strip()) > 200


def test_the_file_tree_names_files_that_exist():
    """What the README sends a newcomer to is there, in the folder it is shown in."""
    package = Path(__file__).parent.parent / 'vlm_reuse_node'
    tree = README.split('## Files')[1].split('```')[1]
    folder, named, missing = '', 0, []
    for line in tree.splitlines():
        words = line.split('  ')
        indent = len(line) - len(line.lstrip())
        first = line.strip().split(' ')[0]
        if indent == 2:
            folder = first if first.endswith('/') else ''
        for word in [name for part in words[:6] for name in part.split() if name.endswith('.py')]:
            named += 1
            if not (package / folder / word).exists():
                missing.append(f'{folder}{word}')
    assert named > 30 and missing == []


def test_what_the_architecture_page_names_is_there():
    """Files, as `folder/file.py`, and links."""
    root = Path(__file__).parent.parent
    page = (root / 'docs' / 'architecture.md').read_text()
    files = re.findall(r'`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)', page)
    assert len(files) > 30
    assert [name for name in files if not any((root / at / name).exists() for at in ('vlm_reuse_node', ''))] == []
    assert [name for name in re.findall(r'\]\(([^)#]+)\)', page) if not (root / 'docs' / name).exists()] == []
