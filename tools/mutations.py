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

"""Makes every small change of a Python file, one at a time. Tests should notice each of them.

It changes comparisons, and/or/not, arithmetic, min/max and any/all, numbers, True/False, strings that are keys or are
compared, conditions, bounds of slices, and return values. It deletes calls, assignments to attributes and items, raise,
continue and break. It skips imports, annotations, decorators, docstrings, log calls and the texts of errors.
"""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

COMPARISONS = {
    ast.Lt: ('<', '<='),
    ast.LtE: ('<=', '<'),
    ast.Gt: ('>', '>='),
    ast.GtE: ('>=', '>'),
    ast.Eq: ('==', '!='),
    ast.NotEq: ('!=', '=='),
    ast.Is: ('is', 'is not'),
    ast.IsNot: ('is not', 'is'),
    ast.In: ('in', 'not in'),
    ast.NotIn: ('not in', 'in'),
}
OPERATORS = {
    ast.Add: ('+', '-'),
    ast.Sub: ('-', '+'),
    ast.Mult: ('*', '/'),
    ast.Div: ('/', '*'),
    ast.FloorDiv: ('//', '*'),
    ast.Mod: ('%', '//'),
    ast.Pow: ('**', '*'),
    ast.BitAnd: ('&', '|'),
    ast.BitOr: ('|', '&'),
}
BOOLEANS = {ast.And: ('and', 'or'), ast.Or: ('or', 'and')}
CALLS = ('min', 'max'), ('any', 'all'), ('minimum', 'maximum')
SWAPPED = dict([*CALLS, *(pair[::-1] for pair in CALLS)])
LOG_CALLS = {'debug', 'info', 'warning', 'error', 'exception', 'critical'}


class Mutation(NamedTuple):
    """One change. before, after: the affected lines, joined to one line. source: the whole changed file."""

    line: int
    before: str
    after: str
    source: str


def mutations(source: str, mode: str = 'exec') -> list[Mutation]:
    """All changes of a file's source, in its order and without duplicates. mode 'eval': of an expression."""
    text = source.encode()
    found: dict[str, Mutation] = {}
    for start, end, new in sorted(_edits(ast.parse(source, mode=mode), text)):
        first, last = text.rfind(b'\n', 0, start) + 1, text.find(b'\n', end)
        last = len(text) if last < 0 else last
        mutated = (text[:start] + new.encode() + text[end:]).decode()
        before, after = text[first:last], text[first:start] + new.encode() + text[end:last]
        line = text.count(b'\n', 0, start) + 1
        found.setdefault(mutated, Mutation(line, _one_line(before), _one_line(after), mutated))
    return list(found.values())


def _one_line(text: bytes) -> str:
    return ' '.join(text.decode().split())


def _edits(tree: ast.AST, text: bytes) -> list[tuple[int, int, str]]:
    """The edits: first byte, end byte, and the new text."""
    finder = _Finder(text)
    finder.visit(tree)
    return finder.edits


class _Finder(ast.NodeVisitor):
    """Collects the edits of a tree. It has a method for each kind of node that is changed."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self.edits: list[tuple[int, int, str]] = []
        self._starts = [0, *(match.end() for match in re.finditer(b'\n', text))]

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        return (
            self._starts[node.lineno - 1] + node.col_offset,
            self._starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _replace(self, node: ast.expr | ast.stmt, new: str) -> None:
        self.edits.append((*self._span(node), new))

    def _swap(self, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Replace an operator between its two operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        pattern = re.escape(old).replace(r'\ ', r'\s+')  # `not in` may contain a line break
        match = re.search(rf'(?<!\w){pattern}(?!\w)'.encode(), self._text[start:end])
        self.edits.append((start + match.start(), start + match.end(), new))

    def _negate(self, test: ast.expr) -> None:
        """Negate a condition, unless swapping its only operator does the same."""
        start, end = self._span(test)
        turned = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            turned = not isinstance(test.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
        if not turned:
            self.edits.append((start, end, f'not ({self._text[start:end].decode()})'))

    def _rename(self, *nodes: ast.expr | None) -> None:
        """Replace each string among these nodes by a different string."""
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                self._replace(node, repr(f'XX{node.value}'))

    def visit_Import(self, node: ast.Import) -> None:
        pass

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        pass

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for each in node.body:
            self.visit(each)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for each in [node.args, *node.body]:
            self.visit(each)

    def visit_arguments(self, node: ast.arguments) -> None:
        for each in [*node.defaults, *node.kw_defaults]:
            if each:
                self.visit(each)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and not _is_log(node.value):
            self._replace(node, 'pass')
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(each, ast.Name) and each.id == '__all__' for each in node.targets):
            self._visit_assignment(node, node.targets)
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self._visit_assignment(node, [node.target])
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._visit_assignment(node, [node.target])
        if type(node.op) in OPERATORS:
            self._swap(node.target, node.value, *(f'{sign}=' for sign in OPERATORS[type(node.op)]))
        self.generic_visit(node)

    def _visit_assignment(self, node: ast.stmt, targets: list[ast.expr]) -> None:
        single = [part for each in targets for part in (each.elts if isinstance(each, ast.Tuple) else [each])]
        if all(isinstance(each, ast.Attribute | ast.Subscript) for each in single):
            self._replace(node, 'pass')

    def visit_Return(self, node: ast.Return) -> None:
        if node.value and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self._replace(node, 'return None')
        self.generic_visit(node)

    def _delete(self, node: ast.stmt) -> None:
        self._replace(node, 'pass')
        self.generic_visit(node)

    visit_Raise = visit_Continue = visit_Break = _delete

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "__name__ == '__main__'":
            self._visit_condition(node)

    def _visit_condition(self, node: ast.If | ast.While | ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    visit_While = visit_IfExp = _visit_condition

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for (left, right), operator in zip(pairwise(sides), node.ops):
            self._swap(left, right, *COMPARISONS[type(operator)])
        for side in sides:
            self._rename(*(side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]))
        self.generic_visit(node)

    def visit_MatchValue(self, node: ast.MatchValue) -> None:
        self._rename(node.value)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in pairwise(node.values):
            self._swap(left, right, *BOOLEANS[type(node.op)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in OPERATORS and not any(_is_text(side) for side in (node.left, node.right)):
            self._swap(node.left, node.right, *OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.Invert):
            start = self._span(node)[0]
            self.edits.append((start, start + (3 if isinstance(node.op, ast.Not) else 1), ''))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, str(not node.value))
        elif isinstance(node.value, int | float):
            self._replace(node, repr(node.value + 1))

    def visit_Dict(self, node: ast.Dict) -> None:
        self._rename(*node.keys)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._rename(node.slice)
        self.generic_visit(node)

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound:
                self._replace(bound, '')
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        if name.endswith('Error') or _is_log(node):
            return
        if name in SWAPPED:
            end = self._span(node.func)[1]
            self.edits.append((end - len(name), end, SWAPPED[name]))
        if name == 'get' and node.args:
            self._rename(node.args[0])
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        # Python 3.11 does not report the position of an expression in an f-string, so the whole string is replaced.
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                value = part.value
                for changed in _changed(value):
                    part.value = changed
                    self._replace(node, ast.unparse(node))
                part.value = value


def _changed(expression: ast.expr) -> Iterator[ast.expr]:
    for mutation in mutations(ast.unparse(expression), 'eval'):
        yield ast.parse(mutation.source, mode='eval').body


def _name(function: ast.expr) -> str:
    return getattr(function, 'attr', None) or getattr(function, 'id', '')


def _is_log(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in LOG_CALLS


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
