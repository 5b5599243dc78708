"""`make install`: a failure leaves the installation as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
# Stands for an interpreter whose new environment has a pip that fails, as without a network.
BROKEN = """\
#!/bin/sh
for folder; do :; done
mkdir -p "$folder/bin"
printf '#!/bin/sh\\nexit 1\\n' >"$folder/bin/python"
chmod 755 "$folder/bin/python"
"""


@pytest.mark.parametrize("target", ["install", "upgrade"])
def test_a_failed_installation_leaves_the_one_before(tmp_path: Path, target: str) -> None:
    python = tmp_path / "python"
    python.write_text(BROKEN, encoding="utf-8")
    python.chmod(0o755)
    program = tmp_path / "root/usr/local/lib/eemtcleanupd/bin/eemtcleanupd"
    program.parent.mkdir(parents=True)
    program.write_text("the version before", encoding="utf-8")
    done = subprocess.run(
        ["make", target, f"DESTDIR={tmp_path / 'root'}", f"PYTHON={python}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert program.read_text(encoding="utf-8") == "the version before"
    assert [path.name for path in program.parent.iterdir()] == ["eemtcleanupd"]
