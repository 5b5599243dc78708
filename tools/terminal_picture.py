"""Draws docs/images/terminal.svg from the output of commands: ``python -m tools.terminal_picture``."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

_IMAGE = Path(__file__).parents[1] / "docs/images/terminal.svg"
_COMMANDS = ("clean --dry-run", "clean", "history")
_COLUMNS = 118
_FIRST_LINES = 7
_LAST_LINES = 2


def main() -> None:
    """Run commands on a demo store and draw the session."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "eemtcleanupd", "demo", folder], check=True, capture_output=True
        )
        for command in _COMMANDS:
            console.print(Text(f"$ eemtcleanupd {command}", style="bold"))
            lines = _on_terminal(command.split(), folder).splitlines()
            if len(lines) > _FIRST_LINES + _LAST_LINES:
                lines = [
                    *lines[:_FIRST_LINES],
                    f"… {len(lines) - _FIRST_LINES - _LAST_LINES} more lines …",
                    *lines[-_LAST_LINES:],
                ]
            for line in lines:
                console.print(Text.from_ansi(line), soft_wrap=False, overflow="ellipsis", no_wrap=True)
            console.print()
    _IMAGE.parent.mkdir(exist_ok=True)
    # Rich loads its font from another host.
    picture = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(str(_IMAGE), title="eemtcleanupd on a demo job store", code_format=picture)


def _on_terminal(arguments: list[str], folder: str) -> str:
    """Return what a command prints on a terminal, without the progress bar, which is on stderr."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "eemtcleanupd", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": str(_COLUMNS)},
        stdout=terminal,
        stderr=subprocess.DEVNULL,
    )
    os.close(terminal)
    output = b""
    while True:
        try:
            output += (read := os.read(controller, 65536))
        except OSError:  # EIO: the process closed the terminal
            break
        if not read:
            break
    os.close(controller)
    if process.wait() != 0:
        raise SystemExit(f"{arguments} exited with {process.returncode}.")
    return output.decode()


if __name__ == "__main__":
    main()
