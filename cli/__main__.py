"""`python -m routereplay.cli`."""

from routereplay.cli.main import main

main()
