#!/usr/bin/env python3
"""Clean a job store once: runs ``eemtcleanupd clean`` for crontabs that call this script.

The options are the same.  The script uses the package installed for this interpreter, or else the checkout
that contains the script, or else the installed command, which can have an interpreter of its own.  That
command is beside the script or in the PATH.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.append(str(here.parent))

try:
    from eemtcleanupd.cli.main import main
except ImportError as error:
    # The command is beside an installed script.  The PATH of cron has neither that folder nor /usr/local/bin.
    path = os.pathsep.join([str(here), os.environ.get("PATH", os.defpath), "/usr/local/bin"])
    if (command := shutil.which("eemtcleanupd", path=path)) is not None:
        os.execv(command, [command, "clean", *sys.argv[1:]])  # noqa: S606  (no shell is wanted)
    sys.exit(
        f"cleanup_jobs.py: error: Module {error.name} is missing for {sys.executable}. Use the "
        f"interpreter that has eemtcleanupd, or run in its source folder: {sys.executable} -m pip install ."
    )

if __name__ == "__main__":
    sys.argv[1:1] = ["clean"]
    main()
