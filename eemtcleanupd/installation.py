"""How this program was installed: which command adds an extra, and where the documentation is.

The package is on no public index.  So advice gives pip the source folder, and never the name alone.
"""

from __future__ import annotations

import re
import shlex
import sys
from enum import Enum
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

_PREFIX = Path(sys.prefix)
_DEBIAN, _IMAGE = Path("/usr/lib/eemtcleanupd"), Path("/opt/eemtcleanupd")
_SOURCE = Path(__file__).resolve().parents[1]
_NOT_OF_USERS = {"dev", "docs", "router", "test"}


class Page(Enum):
    """The pages that messages name, each with its file in the source folder and its title."""

    DATABASE = "docs/how-to/web-interface-database.md", "Use the database of the web interface"
    DOCKER = "docs/how-to/docker.md", "Run in Docker or Podman"
    POSTGRESQL = "docs/how-to/postgresql.md", "Use PostgreSQL and a standby"
    SECURITY = "SECURITY.md", "Security"

    def reference(self, prefix: Path = _PREFIX) -> str:
        """Return the title, and the place for a program in ``prefix``, as part of a sentence."""
        file, title = self.value
        for folder in (prefix.parent.parent / "share/doc/eemtcleanupd", _SOURCE):
            if (folder / file).is_file():
                return f'the page "{title}" ({folder / file})'
        return f'the page "{title}" ({file} in the source folder of eemtcleanupd)'


def add_extra(extra: str, prefix: Path = _PREFIX) -> str:
    """Return the sentence that says how to add an extra to a program in ``prefix``; the others stay."""
    extras = ",".join(sorted({extra, *_installed_extras()}))
    package, user = f"'.[{extras}]'", ""
    if prefix == _DEBIAN:
        user = " as root"
        command = f"make deb EXTRAS={extras} && apt install --reinstall ./dist/eemtcleanupd_*.deb"
    elif prefix.name == "eemtcleanupd" and prefix.parent.name == "lib":
        root, user = prefix.parent.parent, " as root"
        place = "" if root == Path("/usr/local") else f" prefix={shlex.quote(str(root))}"
        command = f"make install EXTRAS={extras}{place}"
    elif prefix == _IMAGE:
        command = f"docker build -f packaging/docker/Dockerfile --build-arg EXTRAS={extras} -t eemtcleanupd ."
    elif (prefix / "pipx_metadata.json").is_file():
        command = f"pipx install --force {package}"
    else:
        command = f"{shlex.quote(sys.executable)} -m pip install {package}"
    return f"In the source folder of eemtcleanupd, run{user}: {command}"


def _installed_extras() -> set[str]:
    """Return the extras whose requirements are all installed."""
    try:
        lines = requires("eemtcleanupd") or []
    except PackageNotFoundError:  # a source folder in the import path
        return set()
    needed = [found.groups() for line in lines if (found := re.match(r'([\w.-]+).*extra == "(\w+)"', line))]
    missing = {extra for name, extra in needed if not _is_installed(name)}
    return {extra for _, extra in needed} - missing - _NOT_OF_USERS


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
