"""The patch engine: check first, change together, put back exactly.

Wrappers are plain closures, not `wrapt` proxies: torch.compile traces through a proxy to
the original and skips it silently, and a proxy call costs several times a closure's.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from routereplay.patches._patch import (
    AppliedPatch,
    Function,
    Library,
    Patch,
    PatchReport,
    Requirement,
)
from routereplay.patches._probe import MARK, Probe, check_requirement, probe
from routereplay.patches.errors import (
    PatchError,
    PatchOverlap,
    UnsupportedLibraryVersion,
)


class _Installed(NamedTuple):
    probe: Probe
    replacement: Any


class PatchSet:
    """The patches of one library: all of them are in place, or none is.

    Args:
        library: what is installed and what is supported.
        patches: applied in this order, reverted in the opposite one.
        requirements: names that the wrappers read; checked before anything changes.
        advice: last sentence of every refusal, what the user can do.
        allow_untested: take a release outside the range; everything else is still checked.
    """

    def __init__(
        self,
        library: Library,
        patches: Sequence[Patch],
        requirements: Sequence[Requirement] = (),
        *,
        advice: str,
        allow_untested: bool = False,
    ) -> None:
        self._library = library
        self._patches = tuple(patches)
        self._requirements = tuple(requirements)
        self._advice = advice
        self._allow_untested = allow_untested
        self._installed: list[_Installed] = []
        self._report: PatchReport | None = None

    @property
    def report(self) -> PatchReport | None:
        """What is applied now; `None` when nothing is."""
        return self._report

    def check(self) -> None:
        """Look at everything and change nothing.

        Raises:
            PatchError: of the class of the first problem; the message lists every one.
        """
        self._probe_all()

    def apply(self) -> PatchReport:
        """Apply every patch, or none. Applying twice changes nothing the second time.

        Raises:
            PatchError: something is not as expected; the message lists all of it.
        """
        if self._report is not None:
            return self._report
        probes = self._probe_all()
        try:
            for found in probes:
                replacement = _replacement(found)
                setattr(found.owner, found.attribute, replacement)
                self._installed.append(_Installed(found, replacement))
        except BaseException:
            self._restore()
            raise
        self._report = PatchReport(
            self._library.name,
            self._library.version,
            self._library.supported,
            os.getpid(),
            tuple(AppliedPatch(p.patch.name, p.patch.target, p.inherited) for p in probes),
        )
        return self._report

    def revert(self) -> None:
        """Put back exactly what was there. Reverting twice changes nothing the second time.

        Raises:
            PatchOverlap: somebody replaced a patched function since; nothing is reverted.
        """
        for found, replacement in self._installed:
            now = vars(found.owner).get(found.attribute)
            if now is not replacement:
                msg = (
                    f"{found.patch.name}: {found.patch.target} was replaced after it was patched "
                    f"(found {now!r}); remove that wrapper first, then revert."
                )
                raise PatchOverlap(msg, target=found.patch.target)
        self._restore()
        self._report = None

    def _restore(self) -> None:
        while self._installed:
            found, _ = self._installed.pop()
            if found.inherited:
                delattr(found.owner, found.attribute)
            else:
                setattr(found.owner, found.attribute, found.raw)

    def _probe_all(self) -> list[Probe]:
        problems: list[PatchError] = []
        probes: list[Probe] = []
        if not (self._library.is_supported or self._allow_untested):
            problems.append(_unsupported(self._library))
        for patch in self._patches:
            try:
                found = probe(patch)
                _check_overlap(found, probes)
                probes.append(found)
            except PatchError as problem:
                problems.append(problem)
        for requirement in self._requirements:
            try:
                check_requirement(requirement)
            except PatchError as problem:
                problems.append(problem)
        if problems:
            raise self._refusal(problems)
        return probes

    def _refusal(self, problems: list[PatchError]) -> PatchError:
        library = self._library
        lines = "\n".join(f"  - {problem.message}" for problem in problems)
        msg = (
            f"{library.name} {library.version} cannot be patched, nothing was changed "
            f"(supported: {library.supported}):\n{lines}\n{self._advice}"
        )
        listed = [{"code": p.code, "message": p.message, **p.details} for p in problems]
        return type(problems[0])(msg, library=library.name, problems=listed)


def _replacement(found: Probe) -> Any:
    original = found.function
    wrapped: Function = functools.wraps(original)(found.patch.wrapper(original))
    setattr(wrapped, MARK, found.patch.name)
    return found.rewrap(wrapped)


def _unsupported(library: Library) -> UnsupportedLibraryVersion:
    msg = f"found {library.name} {library.version}; expected {library.supported}"
    return UnsupportedLibraryVersion(msg, found=library.version, expected=library.supported)


def _check_overlap(found: Probe, earlier: list[Probe]) -> None:
    patch = found.patch
    for other in earlier:
        if (other.owner, other.attribute) == (found.owner, found.attribute):
            msg = f"{patch.name} and {other.patch.name} are two patches on {patch.target}"
            raise PatchOverlap(msg, target=patch.target)
    # functools.wraps copies __dict__, so a stranger's wrapper around ours carries the mark too.
    mark = getattr(found.function, MARK, None)
    if mark is not None:
        msg = f"{patch.name}: {patch.target} is already patched by {mark} of routereplay"
        raise PatchOverlap(msg, target=patch.target)
