"""Fixtures that load a configuration from a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest

from eemtcleanupd.config import Loaded
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.plugins import load


class LoadText(Protocol):
    """Loads a text as the file ``conf/cleanup_config.yaml``."""

    def __call__(
        self,
        text: str | bytes = "",
        *,
        environ: Mapping[str, str] | None = None,
        options: Mapping[str, tuple[object, str]] | None = None,
    ) -> Loaded: ...


class RefuseText(Protocol):
    """Loads an invalid text and returns the error message, with the path of the file replaced by FILE."""

    def __call__(self, text: str | bytes = "", *, environ: Mapping[str, str] | None = None) -> str: ...


@pytest.fixture
def load_text(tmp_path: Path) -> LoadText:
    def load_file(
        text: str | bytes = "",
        *,
        environ: Mapping[str, str] | None = None,
        options: Mapping[str, tuple[object, str]] | None = None,
    ) -> Loaded:
        file = tmp_path / "conf" / "cleanup_config.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return load(file, environ=environ or {}, options=options, cwd=tmp_path)

    return load_file


@pytest.fixture
def refuse_text(load_text: LoadText, tmp_path: Path) -> RefuseText:
    def refuse(text: str | bytes = "", *, environ: Mapping[str, str] | None = None) -> str:
        with pytest.raises(ConfigError) as caught:
            load_text(text, environ=environ)
        return str(caught.value).replace(f"{tmp_path}/conf/cleanup_config.yaml", "FILE")

    return refuse
