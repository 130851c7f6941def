"""The source that is measured, cut at its own lines: a benchmark of steps stays true when a step changes.

Whoever moves a line that a cut begins or ends at is told so by the next run.
"""

import inspect
import textwrap
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

from sekisho import wire
from sekisho.tokens import access, jws
from sekisho.verify import verifier


class Cut(NamedTuple):
    """From the one line of ``module`` that starts with ``begins`` to the next that starts with ``ends``, exclusively.

    ``instead`` is what stands there in a variant.
    """

    module: ModuleType
    begins: str
    ends: str
    instead: str = ""

    def text(self) -> str:
        """The lines, without their indentation."""
        lines, first, last = self._found(inspect.getsource(self.module))
        return textwrap.dedent("".join(lines[first:last]))

    def replaced_in(self, source: str) -> str:
        """The module's source with ``instead`` in the place of the lines."""
        lines, first, last = self._found(source)
        indent = lines[first][: -len(lines[first].lstrip())]
        new = f"{indent}{self.instead}\n" if self.instead else ""
        return "".join([*lines[:first], new, *lines[last:]])

    def _found(self, source: str) -> tuple[list[str], int, int]:
        lines = source.splitlines(keepends=True)
        firsts = [number for number, line in enumerate(lines) if line.lstrip().startswith(self.begins)]
        if len(firsts) != 1:
            raise RuntimeError(f"{self.module.__name__}: {len(firsts)} lines start with {self.begins!r}, not one")
        for number in range(firsts[0] + 1, len(lines)):
            if lines[number].lstrip().startswith(self.ends):
                return lines, firsts[0], number
        raise RuntimeError(f"{self.module.__name__}: no line after {self.begins!r} starts with {self.ends!r}")


def variant(cuts: Iterable[Cut]) -> Any:
    """The class ``Verifier``, compiled anew from its modules' source with the cuts replaced."""
    cuts = list(cuts)
    new_wire = _compiled(wire, cuts)
    new_jws = _compiled(jws, cuts, b64url_decode=new_wire["b64url_decode"], WireError=new_wire["WireError"])
    new_access = _compiled(access, cuts, jws=_as_module(new_jws))
    return _compiled(verifier, cuts, access=_as_module(new_access))["Verifier"]


def _compiled(module: ModuleType, cuts: list[Cut], **names: object) -> dict[str, Any]:
    """The variant's names. ``names`` are those that it must not take from the modules as they are."""
    source = inspect.getsource(module)
    for cut in cuts:
        if cut.module is module:
            source = cut.replaced_in(source)
    made = ModuleType(module.__name__)
    exec(compile(source, f"<variant of {module.__name__}>", "exec"), made.__dict__)
    made.__dict__.update(names)
    return made.__dict__


def _as_module(names: dict[str, Any]) -> ModuleType:
    module = ModuleType(names["__name__"])
    module.__dict__.update(names)
    return module
