"""Commands that are advised: the shell gets the path, whatever it contains, and the terminal only text."""

from __future__ import annotations

import os
import subprocess

import pytest

from eemtcleanupd.remedies import quoted

PATHS = [
    "/a",
    "/a b",
    "/it's; `id` $(id)",
    "/a\nid\n",
    "/\x1b]0;x\x07\\",
    "/b\udc80\udcff7",
    "/\u202eabc'",
    "/-n *",
]


@pytest.mark.parametrize("path", PATHS)
def test_the_shell_gets_the_path_that_is_quoted(path: str) -> None:
    word = quoted(path)
    assert word.isprintable()
    shell = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert shell.stdout == os.fsencode(path)
