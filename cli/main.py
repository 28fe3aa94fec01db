"""Entry point of the `routereplay` command; says what to install if the command line is not."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; with --json, what was called wrongly is told as JSON too."""
    try:
        from routereplay.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "typer":
            raise
        print("the command line needs one more package: pip install 'routereplay[cli]'")
        sys.exit(1)
    if "--json" not in sys.argv:
        app()
        return
    from routereplay.cli.options import tell

    try:
        sys.exit(app(standalone_mode=False))
    except Exception as error:
        # Of click, or of the copy of it that newer releases of typer bring.
        said = getattr(error, "format_message", None)
        if said is None:
            raise
        tell("usage", said(), as_json=True)
        sys.exit(getattr(error, "exit_code", 2))
