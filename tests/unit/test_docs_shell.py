"""Shell blocks of the docs: our commands are parsed as typed, and files that they name exist.

What starts servers, other people's programs or a GPU is not run here; `OTHERS` says where it is,
or what it needs.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from routereplay.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ENDS = {"|", "&", ";", "&&", "||"}
OTHERS = {
    "cd": "the reader's folders",
    "curl": "needs a server; tests/contract asks the same paths",
    "docker": "needs a Docker engine; ./scripts/compose-check runs the services as processes",
    "export": "the reader's shell",
    "grep": "reads what another command prints",
    "hadolint": "from PyPI; reads the Dockerfiles",
    "jq": "reads what another command prints",
    "mkdir": "the reader's folders",
    "opentelemetry-instrument": "needs OpenTelemetry's distribution",
    "pip": "needs an index; tests/packaging installs the wheel",
    "promtool": "Prometheus' own; tests/unit/test_monitoring.py reads the rules",
    "sudo": "needs root",
    "vllm": "needs a GPU; tests/e2e starts it on a CPU",
}
"""Programs that are not ours, and why their lines are not run here."""


def lines_of(page):
    """Yield each command line of a page, continued lines joined, prompts and answers left out."""
    for kind, code in FENCE.findall(page.read_text()):
        for line in code.replace("\\\n", " ").splitlines():
            if kind == "console":
                if not line.startswith("$ "):
                    continue
                line = line[2:]
            if line.strip() and not line.lstrip().startswith("#"):
                yield line


def programs_of(line):
    """Yield the words of each program of a command line, without variables and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in lexer:
        if word in ENDS:
            yield words
            words = []
        elif word.startswith((">", "<")):
            if words and words[-1] == "2":
                words.pop()
            skip = True
        elif skip:
            skip = False
        elif words or not re.match(r"\w+=", word):
            words.append(word)
    if words:
        yield words


def parse(command: Any, name, arguments, parent=None):
    """Parse the arguments of a command and of the subcommand in them; nothing is run."""
    with command.make_context(name, list(arguments), parent=parent) as context:
        below = getattr(command, "commands", None)
        if below is None:
            return
        rest = [*context._protected_args, *context.args]
        found, subcommand, arguments = command.resolve_command(context, rest)
        parse(subcommand, found, arguments, context)


def check(words):
    program, *arguments = words
    if program == "routereplay":
        parse(typer.main.get_command(app), program, arguments)
    elif "/" in program or program in ("python", "pytest"):
        if "/" in program:
            assert (ROOT / program).stat().st_mode & 0o111, f"{program} cannot be run"
        paths = [word for word in arguments if word.endswith((".py", ".sh", ".md"))]
        assert all((ROOT / path).exists() for path in paths), arguments
    else:
        assert program in OTHERS, f"{program}: say in OTHERS why it is not run here"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_shell_blocks_of_a_page_can_be_typed(page):
    for line in lines_of(page):
        for words in programs_of(line):
            check(words)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("routereplay get --trajectory", "Missing parameter"),
        ("routereplay gett episode-17", "No such command"),
        ("routereplay keys new --no-such-flag", "No such option"),
        ("./scripts/no-such-script", "No such file"),
        ("./scripts/run-python benchmarks/no_such_benchmark.py", "no_such_benchmark"),
        ("A=1 frobnicate --all > out", "frobnicate: say in OTHERS"),
    ],
)
def test_a_line_that_cannot_be_typed_is_found(line, found):
    with pytest.raises(Exception, match=found):
        for words in programs_of(line):
            check(words)
