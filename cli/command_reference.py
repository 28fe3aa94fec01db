"""docs/command.md: what `--help` says of every subcommand, on one page."""

from __future__ import annotations

from typing import Any

import typer

from routereplay.cli.app import app

_HEAD = """\
# The command

Made from `cli/commands/` by `python -m routereplay.cli.reference docs`.

`--json` prints JSON, errors too. A command ends with 0 if all is well, 1 if not, and 2 if it was
called wrongly; an error names its [code](http-api.md#errors) and what to do.
`routereplay --install-completion` teaches the shell to complete.
"""


def command_page() -> str:
    """Return docs/command.md."""
    group: Any = typer.main.get_command(app)
    lines = [_HEAD]
    for name, command in group.commands.items():
        lines += _described(name, command)
    return "\n".join(lines)


def _described(name: str, command: Any) -> list[str]:
    if commands := getattr(command, "commands", None):
        found = [_described(f"{name} {below}", one) for below, one in commands.items()]
        return [line for lines in found for line in lines]
    options = [p for p in command.params if p.opts[0].startswith("-") and p.name != "help"]
    places = [(p.metavar or p.name.upper()) for p in command.params if p not in options]
    called = " ".join(["routereplay", name, *(place for place in places if place != "HELP")])
    summary = (command.help or "").split("\n\n")[0].replace("\n", " ")
    lines = [f"## {name}", "", summary, "", "```text", called, "```", ""]
    if options:
        lines += ["| option | meaning |", "|---|---|"]
    for option in options:
        names = ", ".join(f"`{text}`" for text in [*option.opts, *option.secondary_opts])
        variable = f" Also `{option.envvar}`." if option.envvar else ""
        meaning = (option.help or "").replace("|", "/")
        lines.append(f"| {names} | {meaning}{variable} |")
    return [*lines, ""]
