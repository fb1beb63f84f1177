"""`python -m gouache` is the command line."""

from gouache.cli.main import main

main()
