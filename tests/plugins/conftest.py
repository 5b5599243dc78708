"""Plugins from source text, each in its own module."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from eemtcleanupd.plugins import Plugins, load
from tests.cleanup.conftest import JobStore

HEAD = "from eemtcleanupd.hookspecs import hookimpl, NotifierSettings, RetryLater\n"
Module = Callable[[str, str], str]
MakePlugins = Callable[..., Plugins]
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Write a module; return the name under which it can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    number = next(_numbers)  # a folder name can occur again, and Python caches imported modules

    def write(name: str, text: str) -> str:
        unique = f"{name}_of_test_{number}"
        (tmp_path / unique).mkdir(exist_ok=True)
        (tmp_path / unique / f"{name}.py").write_text(HEAD + text)
        return f"{unique}.{name}"

    return write


@pytest.fixture
def plugins(tmp_path: Path) -> MakePlugins:
    def build(text: str, *, veto_seconds: float = 10.0) -> Plugins:
        file = tmp_path / "cleanup_config.yaml"
        file.write_text(text)
        return Plugins(load(file, environ={}, cwd=tmp_path).config, veto_seconds=veto_seconds)

    return build


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "store")
