"""Build the site of the documents into a folder: ``python docs/build_site.py site``.

The pages are laid out as they are in the repository, so a link leads to the same document in both.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_FOLDERS = ("docs", "etc", "examples", "packaging")
_SCRIPTS = (path.name for path in (_ROOT / "docs").glob("*.py"))
_LEFT_OUT = ("__pycache__", "build", "*.egg-info", "zensical.toml", *_SCRIPTS)


def main(destination: Path) -> None:
    """Build the site; what is wrong in a page (a link that leads nowhere) ends it with 1."""
    if destination.exists() and not (destination / "search.json").is_file():
        sys.exit(f"{destination} is there, and is no site of ours: it stays as it is")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        _lay_out(project / "pages")
        shutil.copy(_ROOT / "docs" / "zensical.toml", project)
        zensical = Path(sys.executable).with_name("zensical")
        if subprocess.run([zensical, "build", "--strict"], cwd=project, check=False).returncode:
            sys.exit("the site was not built: see above")
        if destination.exists():
            shutil.rmtree(destination)
        shutil.move(project / "site", destination)


def _lay_out(pages: Path) -> None:
    pages.mkdir()
    for document in (*_ROOT.glob("*.md"), _ROOT / "LICENSE"):
        shutil.copy(document, pages)
    for name in _FOLDERS:
        shutil.copytree(_ROOT / name, pages / name, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    for folder in {path.parent for path in pages.rglob("*") if path.is_file()} - {pages}:
        if not any(folder.glob("*.md")):
            names = sorted(path.name for path in folder.iterdir())
            lines = [f"# {folder.relative_to(pages)}", "", *(f"- [{name}]({name})" for name in names)]
            (folder / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
