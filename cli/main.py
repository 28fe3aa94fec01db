"""Entry point of the `routereplay` command; says what to install if the command line is not."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from routereplay.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "typer":
            raise
        print("the command line needs one more package: pip install 'routereplay[cli]'")
        sys.exit(1)
    app()
