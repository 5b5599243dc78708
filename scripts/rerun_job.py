#!/usr/bin/env python3
"""Submit a job again: ``eemtcleanupd rerun`` under the name that the EEMT documentation calls.

Takes the same options.  Runs with the package that is installed for this interpreter, or from the checkout
that this script lies in.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

try:
    from eemtcleanupd.cli.main import main
except ImportError as error:
    sys.exit(
        f"rerun_job.py: {error.name} is missing for {sys.executable}; install the package for this "
        f"interpreter (pip install eemtcleanupd), or call the one that has it"
    )

if __name__ == "__main__":
    sys.argv[1:1] = ["rerun"]
    main()
