"""The snapshot of every vLLM release, against the table and the vLLM that is installed."""

import importlib.metadata
import importlib.util
import io
import zipfile
from pathlib import Path

import httpx
import pytest

from routereplay.cli.surface import load_snapshot, misfits_of, surface_of, unseen_bodies
from routereplay.cli.wheels import RemoteWheel
from routereplay.patches._patch import Patch, Requirement
from routereplay.patches._surface import misfits, read_surface, source_below
from routereplay.patches.vllm.releases import Release, known_releases

SNAPSHOT = load_snapshot()

SOURCE = '''
class Engine:
    """An engine."""

    limit: int = 3
    field: str

    def step(self, outputs: list[int], extra: int = 0) -> int:
        """Do a step."""
        # Counts.
        return len(outputs) + extra
'''
STEP = Patch(
    name="step",
    target="hostlib.engine:Engine.step",
    uses=("self", "outputs"),
    wrapper=lambda original: original,
    reason="",
    remove_when="",
)
FIELDS = Requirement(target="hostlib.engine:Engine", names=("limit", "field"), reason="sizes")


def read(source):
    return {"hostlib/engine.py": source}.get


def surface(source):
    return read_surface(read(source), [STEP], [FIELDS])


def test_the_snapshot_has_every_supported_release():
    assert {Release.of(version) for version in SNAPSHOT} == set(known_releases())


@pytest.mark.parametrize("version", SNAPSHOT)
def test_every_release_in_the_snapshot_fits_the_table(version):
    assert misfits_of(SNAPSHOT[version], version) == []


@pytest.mark.vllm
def test_the_installed_vllm_is_the_one_in_the_snapshot():
    folder = Path(importlib.util.find_spec("vllm").origin).parents[1]
    version = importlib.metadata.version("vllm").partition("+")[0]
    installed = surface_of(source_below(folder), version)

    assert installed == SNAPSHOT[version]


def test_a_fingerprint_changes_with_the_code_and_with_nothing_else():
    def body(source):
        return surface(source)["patches"]["step"]["body"]

    commented = SOURCE.replace("# Counts.", "# Counts the outputs.")
    undocumented = SOURCE.replace('"""Do a step."""', '"""Another word."""')
    untyped = SOURCE.replace("outputs: list[int]", "outputs").replace(" -> int", "")

    assert body(commented) == body(undocumented) == body(untyped) == body(SOURCE)
    assert body(SOURCE.replace("+ extra", "- extra")) != body(SOURCE)


def test_what_is_there_fits():
    assert misfits(surface(SOURCE), [STEP], [FIELDS]) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (SOURCE.replace("outputs:", "results:"), "step: hostlib.engine:Engine.step takes (self, r"),
        (SOURCE.replace("def step", "def advance"), "Engine.step does not exist"),
        (SOURCE.replace("    field: str\n", ""), "hostlib.engine:Engine has no field (sizes)"),
        (None, "Engine.step does not exist"),
    ],
)
def test_drift_is_named(source, problem):
    assert problem in "\n".join(misfits(surface(source), [STEP], [FIELDS]))


def test_a_body_of_no_known_release_is_named():
    known = {"1.0": surface(SOURCE)}

    assert unseen_bodies(surface(SOURCE), known) == []
    assert unseen_bodies(surface(SOURCE.replace("+ extra", "")), known) == ["step"]


def test_one_file_of_a_wheel_is_read_by_range_and_the_rest_is_not_fetched():
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("pkg/kernels.so", bytes(8 << 20))
        archive.writestr("pkg/engine.py", SOURCE)
    wheel, sent = written.getvalue(), []

    def serve(request):
        first, last = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
        sent.append(last + 1 - first)
        total = {"Content-Range": f"bytes {first}-{last}/{len(wheel)}"}
        return httpx.Response(206, content=wheel[first : last + 1], headers=total)

    with RemoteWheel("https://index/pkg.whl", httpx.MockTransport(serve)) as remote:
        assert remote.read("pkg/engine.py") == SOURCE
        assert remote.read("pkg/absent.py") is None
    assert sum(sent) < len(wheel) / 2


def test_a_server_that_ignores_ranges_is_refused():
    whole = httpx.MockTransport(lambda request: httpx.Response(200, content=b"wheel"))

    with pytest.raises(RuntimeError, match="is not served by range"):
        RemoteWheel("https://index/pkg.whl", whole)
