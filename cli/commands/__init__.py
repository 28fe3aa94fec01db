"""The subcommands, one module each: its docstring says what it does, its `command` does it.

A module imports typer and `routereplay.cli.options` at the top, and everything else when it
runs, so that `routereplay --help` and shell completion answer at once.
"""
