"""The mutants that mutmut does not make: of module constants, of class bodies, and of decorated functions.

mutmut swaps whole functions at run time, so what runs at import escapes it: here that is every limit, every regular
expression, the tables of algorithms, and the properties. These are made by mutmut's own operators, one file each.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
import libcst.matchers as m
from libcst.metadata import PositionProvider
from mutmut.mutation.mutators import mutation_operators

# The names of types and of modules; what is exported is checked by the import of every test.
_PASSED_OVER = (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom)
# Any change of these is an AttributeError at once: they would only flatter the share that was killed.
_SLOTS = m.SimpleStatementLine([m.Assign([m.AssignTarget(m.Name("__slots__"))])])
_SEEN_BY_MUTMUT = {"staticmethod", "classmethod"}


@dataclass(frozen=True)
class Mutant:
    """A whole source text with one thing changed, and the change for the reader."""

    line: int
    before: str
    after: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """All of one source text, in the order of its lines."""
    wrapper = cst.MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    lines = wrapper.resolve(PositionProvider)
    for statement in _statements(wrapper.module.body):
        for node in _nodes(statement):
            for kind, operator in mutation_operators:
                if not isinstance(node, kind):
                    continue
                for changed in operator(node):
                    whole = wrapper.module.deep_replace(node, changed)
                    before, after = _first_difference(source, whole.code)
                    if node in lines and before != after:
                        yield Mutant(lines[node].start.line, before, after, whole.code)


def _statements(body) -> Iterator[cst.CSTNode]:
    for statement in body:
        if isinstance(statement, cst.ClassDef):
            yield from _statements(statement.body.body)
        elif isinstance(statement, cst.FunctionDef):
            names = {getattr(decorator.decorator, "value", "") for decorator in statement.decorators}
            if names - _SEEN_BY_MUTMUT:
                yield statement
        elif not m.matches(statement, _SLOTS):
            yield statement


def _nodes(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, _PASSED_OVER):
        return
    yield node
    for child in node.children:
        yield from _nodes(child)


def _first_difference(before: str, after: str) -> tuple[str, str]:
    for old, new in zip(before.splitlines(), after.splitlines(), strict=False):
        if old != new:
            return old.strip(), new.strip()
    return "", ""
