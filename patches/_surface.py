"""Read what patches touch from the host's source, without importing or installing it.

The runtime check (`_probe`) sees the library that is there. This one sees any release whose
files can be read: which symbols exist, what their parameters are called, and a fingerprint
of each wrapped body, so that a change inside a function that keeps its signature is noticed.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from routereplay.patches._patch import Patch, Requirement

Reader: TypeAlias = Callable[[str], str | None]
"""Returns the source of `package/module.py`, or None if there is no such file."""

Surface: TypeAlias = dict[str, dict[str, Any]]
"""`patches`: name to parameters and body; `names`: target to the names found, sorted."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Defined = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def source_below(folder: Path) -> Reader:
    """Return a reader of the files below `folder`, a `site-packages` or a source tree."""

    def read(path: str) -> str | None:
        file = folder / path
        return file.read_text(encoding="utf-8") if file.is_file() else None

    return read


def read_surface(
    read: Reader, patches: Sequence[Patch], requirements: Sequence[Requirement]
) -> Surface:
    """Return what a source has of everything that is patched or read; absent things are left out.

    Args:
        read: gives the source of a file.
        patches: whose targets are looked up.
        requirements: whose names are looked up; those found are listed.
    """
    modules = _Modules(read)
    found: Surface = {"patches": {}, "names": {}}
    for patch in patches:
        node = modules.find(patch.target)
        if isinstance(node, _Function):
            parameters = [argument.arg for argument in _arguments(node)]
            found["patches"][patch.name] = {"parameters": parameters, "body": fingerprint(node)}
    for needed in requirements:
        node = modules.find(needed.target)
        if node is not None:
            known = set(_names(node))
            before = found["names"].get(needed.target, [])
            found["names"][needed.target] = sorted({*before, *(known & set(needed.names))})
    return found


def misfits(
    surface: Surface, patches: Sequence[Patch], requirements: Sequence[Requirement]
) -> list[str]:
    """Return what would keep the patches from being applied, one line each."""
    problems = []
    for patch in patches:
        found = surface["patches"].get(patch.name)
        if found is None:
            problems.append(f"{patch.name}: {patch.target} does not exist")
        elif tuple(found["parameters"][: len(patch.uses)]) != patch.uses:
            problems.append(
                f"{patch.name}: {patch.target} takes ({', '.join(found['parameters'])}); "
                f"expected leading parameters ({', '.join(patch.uses)})"
            )
    for needed in requirements:
        names = surface["names"].get(needed.target, [])
        missing = [name for name in needed.names if name not in names]
        if missing:
            problems.append(f"{needed.target} has no {', '.join(missing)} ({needed.reason})")
    return problems


def fingerprint(node: _Function) -> str:
    """Return 16 hex digits that change with the code, not with comments, docs or types."""
    bare = ast.parse(ast.unparse(node)).body[0]
    for inner in ast.walk(bare):
        if isinstance(inner, _Defined) and ast.get_docstring(inner, clean=False) is not None:
            inner.body = inner.body[1:] or [ast.Pass()]
        if isinstance(inner, _Function):
            inner.returns = None
        if isinstance(inner, ast.arg):
            inner.annotation = None
    return hashlib.sha256(ast.unparse(bare).encode()).hexdigest()[:16]


class _Modules:
    def __init__(self, read: Reader) -> None:
        self._read = read
        self._trees: dict[str, ast.Module | None] = {}

    def find(self, target: str) -> _Defined | None:
        module, _, path = target.partition(":")
        node: ast.AST | None = self._tree(module)
        for part in path.split("."):
            node = None if node is None else _child(node, part)
        return node if isinstance(node, _Defined) else None

    def _tree(self, module: str) -> ast.Module | None:
        if module not in self._trees:
            path = module.replace(".", "/")
            source = self._read(f"{path}.py") or self._read(f"{path}/__init__.py")
            self._trees[module] = None if source is None else ast.parse(source)
        return self._trees[module]


def _child(node: ast.AST, name: str) -> _Defined | None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Defined) and child.name == name:
            return child
    return None


def _arguments(node: _Function) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def _names(node: _Defined) -> Iterator[str]:
    """Yield parameters of a function; methods, fields and assigned attributes of a class."""
    if isinstance(node, _Function):
        yield from (argument.arg for argument in _arguments(node))
        return
    for child in node.body:
        if isinstance(child, _Defined):
            yield child.name
        elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            yield child.target.id
        elif isinstance(child, ast.Assign):
            yield from (target.id for target in child.targets if isinstance(target, ast.Name))
