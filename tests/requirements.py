"""What a test needs of the machine: where it is missing, the test is skipped and says why."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test, or a module as ``pytestmark``, where one of these programs is not installed."""
    missing = [program for program in programs if find_program(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def find_program(name: str) -> str | None:
    """Return the path of a program, also of one that only root has in its path."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
