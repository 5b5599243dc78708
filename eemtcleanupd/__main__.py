"""Run the command line: ``python -m eemtcleanupd`` is the same as ``eemtcleanupd``."""

from eemtcleanupd.cli.main import main

main()
