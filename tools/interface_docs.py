"""Write the tables of docs/interfaces.md anew from the interface files; the text between them is kept.

python tools/interface_docs.py
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs' / 'interfaces.md'
FOLDER = ROOT / 'vlm_reuse_interfaces'
PARTS = {'.msg': ('',), '.srv': ('request', 'response'), '.action': ('goal', 'result', 'feedback')}
BLOCK = re.compile(r'<!-- table: (\S+) -->\n(.*?)<!-- /table -->', re.S)


def interfaces() -> list[str]:
    """Return every message, service and action, such as 'msg/Answer.msg'."""
    return sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob('*/*') if path.suffix in PARTS)


def table(name: str) -> str:
    """Return the table of one interface file: every field and constant, with its type, default and comment."""
    path = FOLDER / name
    parts = path.read_text().split('\n---\n')
    lines = []
    for part, text in zip(PARTS[path.suffix], parts, strict=True):
        rows = [f'| {row} |' for row in map(' | '.join, fields(text))]
        lines += [f'{part.capitalize()}:', ''] if part else []
        lines += ['| field | type | default | what |', '|---|---|---|---|', *rows, '']
    return '\n'.join(lines).rstrip() + '\n'


def fields(text: str) -> list[tuple[str, str, str, str]]:
    """Return (name, type, default or value, comment) of each declaration; comments may go on in the next lines."""
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


def page(text: str) -> str:
    """Return the page with every table as the files have it now."""
    return BLOCK.sub(lambda block: f'<!-- table: {block[1]} -->\n{table(block[1])}<!-- /table -->', text)


def main() -> int:
    """Rewrite the page."""
    PAGE.write_text(page(PAGE.read_text()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
