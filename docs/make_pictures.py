"""Make docs/images/terminal.svg from what the program really prints on a terminal."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

_IMAGE = Path(__file__).parent / "images/terminal.svg"
_COMMANDS = ("clean --dry-run", "clean", "history")
_LINES_SHOWN = 7  # of each command: the first ones, and the last two


def main() -> None:
    """Build a demo store, run the commands on it, and draw the session."""
    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "eemtcleanupd", "demo", folder], check=True, capture_output=True
        )
        for command in _COMMANDS:
            console.print(Text(f"$ eemtcleanupd {command}", style="bold"))
            lines = _on_terminal(command.split(), folder).splitlines()
            if len(lines) > _LINES_SHOWN + 2:
                lines = [
                    *lines[:_LINES_SHOWN],
                    f"… {len(lines) - _LINES_SHOWN - 2} more lines …",
                    *lines[-2:],
                ]
            for line in lines:
                console.print(Text.from_ansi(line), soft_wrap=False, overflow="ellipsis", no_wrap=True)
            console.print()
    _IMAGE.parent.mkdir(exist_ok=True)
    console.save_svg(str(_IMAGE), title="eemtcleanupd on a demo job store")


def _on_terminal(arguments: list[str], folder: str) -> str:
    """Return what a command writes to its terminal; the progress bar goes to a pipe, so there is none."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "eemtcleanupd", *arguments],
        cwd=folder,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            output += (read := os.read(ours, 65536))
        except OSError:  # EIO: the other side has closed
            break
        if not read:
            break
    os.close(ours)
    if process.wait() != 0:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    return output.decode()


if __name__ == "__main__":
    main()
