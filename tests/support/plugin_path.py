"""Where a vLLM process finds the recorder, and plugins of a test."""

import importlib.metadata
import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def path_of_plugin(folder):
    """Return a PYTHONPATH with the package and its entry point, installed or not.

    Args:
        folder: an empty one, for what an installation would have written.
    """
    paths = [str(ROOT / ".editable")]
    installed = importlib.metadata.entry_points(group="vllm.general_plugins", name="routereplay")
    if not installed:
        info = folder / "routereplay-0.dist-info"
        info.mkdir()
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        points = project["entry-points"]["vllm.general_plugins"]
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: routereplay\nVersion: 0\n")
        (info / "entry_points.txt").write_text("\n".join(["[vllm.general_plugins]", *lines, ""]))
        paths.append(str(info.parent))
    return os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])


def path_of_other(folder, name, text, path):
    """Write a vLLM plugin and return `path` with it in front.

    Args:
        folder: an empty one.
        name: of the plugin.
        text: its module, with a function `register`.
        path: what else is on the PYTHONPATH.
    """
    (folder / f"{name}_plugin.py").write_text(text)
    info = folder / f"{name}-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    point = f"[vllm.general_plugins]\n{name} = {name}_plugin:register\n"
    (info / "entry_points.txt").write_text(point)
    return os.pathsep.join([str(folder), path])
