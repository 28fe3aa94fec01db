"""Errors of the patch layer: the host library is not what a patch expects.

PatchError
├─ PatchTargetMissing          patch_target_missing: a module, class, method or field is not there
├─ PatchSignatureDrift         patch_signature_drift: its leading parameters are others
├─ UnsupportedLibraryVersion   unsupported_library_version: a release outside the tested range
└─ PatchOverlap                patch_overlap: two patches on one symbol, or a stranger on top

None of them is an `ImportError`: hosts catch that one in hundreds of places and carry on.
"""

from __future__ import annotations

from routereplay.wire.errors import RouteReplayError


class PatchError(RouteReplayError):
    """The host library is not what the patches expect; nothing was changed."""

    code = "patch"


class PatchTargetMissing(PatchError):
    """A module, class, method or field that a patch needs does not exist."""

    code = "patch_target_missing"


class PatchSignatureDrift(PatchError):
    """A function that a patch wraps has other leading parameters than expected."""

    code = "patch_signature_drift"


class UnsupportedLibraryVersion(PatchError):
    """The installed release of the library is outside the range that was tested."""

    code = "unsupported_library_version"


class PatchOverlap(PatchError):
    """Two patches on one symbol, or somebody wrapped a patched symbol since."""

    code = "patch_overlap"
