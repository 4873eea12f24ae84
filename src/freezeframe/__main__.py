"""`python -m freezeframe`: the program, where its script is not installed."""

from freezeframe.cli.main import main

main()
