"""Flags of `vllm serve` that decide whether routes can be captured, read as vLLM reads them.

vLLM takes flags from a YAML file too (`--config FILE`) and puts them before those of the
command line, which are the last word. Here only the few that matter are parsed, so that it
works without vLLM, on a machine that only starts one elsewhere.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class UnreadableConfig(ValueError):
    """A file of flags that vLLM would end on; `way_out` says what to do."""

    def __init__(self, message: str, way_out: str) -> None:
        super().__init__(message)
        self.way_out = way_out


def read_flags(flags: str) -> argparse.Namespace:
    """Return the flags that matter, by the names of `EngineArgs`.

    Args:
        flags: a command line of `vllm serve`, or what follows that.

    Raises:
        UnreadableConfig: the file that `--config` names is not one that vLLM reads.
        argparse.ArgumentError: a value is of another kind.
        ValueError: quotes that do not end, or JSON that is none.
    """
    parser = _parser()
    words = shlex.split(flags)
    while words[:1] in (["vllm"], ["serve"]):
        del words[0]
    words = _with_file(words, parser)
    return parser.parse_known_args(_undotted(list(_apart(words))))[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    parser.add_argument("--pipeline-parallel-size", "-pp", type=int)
    parser.add_argument("--decode-context-parallel-size", "-dcp", type=int)
    parser.add_argument("--prefill-context-parallel-size", "-pcp", type=int)
    parser.add_argument("--kv-transfer-config", type=_mapping)
    parser.add_argument("--speculative-config", "-sc", type=_mapping)
    parser.add_argument("--spec-method")
    parser.add_argument("--spec-model")
    for name in ("dbo", "prefix-caching"):
        both = parser.add_argument(
            f"--enable-{name}", action=argparse.BooleanOptionalAction, default=None
        )
        # From 0.33 on `--disable-x` is `--no-enable-x`.
        parser.add_argument(f"--disable-{name}", dest=both.dest, action="store_false", default=None)
    # Only `--config=FILE` is left of it by now.
    parser.add_argument("--config")
    return parser


def _mapping(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        msg = f"{text} is no JSON object"
        raise argparse.ArgumentTypeError(msg)
    return found


def _with_file(words: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Return the words with those of `--config FILE` in front, where vLLM puts them."""
    if "--config" not in words:
        return words
    at = words.index("--config")
    if words.count("--config") > 1:
        msg = "--config is given more than once"
        raise UnreadableConfig(msg, "join the files to one")
    if at == len(words) - 1:
        msg = "--config has no file"
        raise UnreadableConfig(msg, "name one behind it")
    model = words[:1] if at and not words[0].startswith("-") else []
    rest = [*words[len(model) : at], *words[at + 2 :]]
    return [*model, *_words_of(Path(words[at + 1]), parser), *rest]


def _words_of(path: Path, parser: argparse.ArgumentParser) -> Iterator[str]:
    for name, value in _load(path).items():
        flag = f"--{name}"
        if isinstance(value, bool):
            off = f"--no-{name}"
            # A name with underscores that is false is passed over by vLLM, too.
            yield from [flag] if value else [off] if off in parser._option_string_actions else []
        elif isinstance(value, list):
            yield from [flag, *map(str, value)] if value else []
        elif isinstance(value, dict):
            yield from (flag, _as_json(path, name, value))
        else:
            yield from (flag, str(value))


def _load(path: Path) -> dict[str, Any]:
    if path.suffix not in {".yaml", ".yml"}:
        msg = f"--config {path}: vLLM reads files that end in .yaml or .yml"
        raise UnreadableConfig(msg, "rename it")
    try:
        import yaml
    except ImportError as error:
        msg = f"--config {path} is YAML, and no reader of YAML is installed here"
        raise UnreadableConfig(msg, "pip install pyyaml, or ask where vLLM is installed") from error
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"--config {path} cannot be read: {' '.join(str(error).split())}"
        raise UnreadableConfig(msg, "vLLM would end on it; mend the file or its path") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        msg = f"--config {path} holds {_kind(found)}; expected flags and their values"
        raise UnreadableConfig(msg, "write one `flag: value` a line")
    return found


def _kind(found: Any) -> str:
    if isinstance(found, dict):
        return "a name that is no text"
    return "nothing" if found is None else f"a {type(found).__name__}"


def _as_json(path: Path, name: str, value: dict[str, Any]) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:
        msg = f"--config {path}: {name} holds what JSON has no word for, such as a date: {error}"
        raise UnreadableConfig(msg, "quote it") from error


def _apart(words: list[str]) -> Iterator[str]:
    """Yield words; `--flag=value` is two, so that only flags are spelled anew."""
    for word in words:
        if word.startswith("--config="):
            yield word
        else:
            yield from word.split("=", 1) if word.startswith("--") else [word]


def _undotted(words: list[str]) -> list[str]:
    """Return the words with dashes in flags, and `--a-config.key value` as JSON at the end.

    There it takes the place of a `--a-config JSON`, as in vLLM.
    """
    kept: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    left = iter(words)
    for word in left:
        flag, dot, path = word.partition(".")
        if not word.startswith("--") or word.startswith("--config="):
            kept.append(word)
        elif not dot:
            kept.append(word.replace("_", "-"))
        else:
            place = found.setdefault(flag.replace("_", "-"), {})
            *parents, last = path.removesuffix("+").split(".")
            for parent in parents:
                if not isinstance(place.get(parent), dict):
                    place[parent] = {}
                place = place[parent]
            value = next(left, "")
            place[last] = value.split(",") if path.endswith("+") else _json_or_text(value)
    for flag, config in found.items():
        kept += [flag, json.dumps(config)]
    return kept


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
