"""The wheel built from the sdist is the tree, and it works where nothing else of ours is."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSES = ("wire", "client", "patches", "sidecar", "parity", "cli")

pytestmark = pytest.mark.packaging


def _run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the unpacked sdist as an installer would."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    _run("tar", "-xzf", sdist, cwd=folder)
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=unpacked)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def empty_environment(wheel, tmp_path_factory):
    """A Python that sees the installed wheel and third-party packages, and not this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    site = Path(
        _run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder)[:-1]
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Only directories of the interpreter's own have their .pth files read, so the
    # editable install beside these packages stays unseen.
    (site / "third_party.pth").write_text(sysconfig.get_paths()["purelib"])
    return python, folder


def test_the_wheel_holds_exactly_the_files_of_the_houses_and_the_demo(wheel):
    folders = (*HOUSES, "examples/end_to_end")
    tree = (path for house in folders for path in (ROOT / house).rglob("*") if path.is_file())
    expected = {
        f"routereplay/{path.relative_to(ROOT)}" for path in tree if "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert found == expected


def test_the_wheel_ships_types_and_no_path_hooks(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    assert {f"routereplay/{house}/py.typed" for house in HOUSES} <= set(names)
    assert not [name for name in names if name.endswith((".pth", ".so", "sitecustomize.py"))]
    assert "routereplay/__init__.py" not in names


def test_every_house_imports_from_the_installed_wheel(empty_environment):
    python, folder = empty_environment
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    )

    files = _run(
        python, "-P", "-c", code, *(f"routereplay.{house}" for house in HOUSES), cwd=folder
    ).split()

    assert len(files) == len(HOUSES)
    assert all(str(folder) in name for name in files)


@pytest.mark.parametrize("module", ["routereplay.wire", "routereplay.client"])
def test_a_trainer_that_only_fetches_loads_no_engine_and_no_server(empty_environment, module):
    python, folder = empty_environment
    code = f"import sys, {module}; print(*(m for m in sys.modules if '.' not in m))"

    loaded = set(_run(python, "-P", "-c", code, cwd=folder).split())

    assert (
        loaded & {"torch", "vllm", "megatron", "fastapi", "uvicorn", "redis", "pydantic"} == set()
    )


def test_the_plugin_is_registered_with_vllm(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        text = archive.read(name).decode()

    assert "[vllm.general_plugins]\nroutereplay = routereplay.patches.vllm.plugin:register" in text


@pytest.mark.parametrize("house", HOUSES)
def test_the_editable_links_lead_to_the_houses(house):
    link = ROOT / ".editable" / "routereplay" / house

    assert link.is_symlink()
    assert link.resolve() == ROOT / house
