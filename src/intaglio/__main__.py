"""`python -m intaglio`: the command line."""

from intaglio.cli import main

main()
