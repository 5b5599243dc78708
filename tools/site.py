"""Builds the documentation site: ``python -m tools.site FOLDER``.

The pages have the same layout as in the repository, so that relative links work in both.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_FOLDERS = ("docs", "etc", "examples", "packaging")
_EXCLUDED = ("__pycache__", "build", "*.egg-info", "zensical.toml")


def main(destination: Path) -> None:
    """Build the site, or exit with 1 if a page has an error such as a broken link."""
    if destination.exists() and not (destination / "search.json").is_file():
        sys.exit(f"{destination} exists and is not a documentation site. Choose another folder.")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        _copy_pages(project / "pages")
        shutil.copy(_ROOT / "docs" / "zensical.toml", project)
        zensical = Path(sys.executable).with_name("zensical")
        if subprocess.run([zensical, "build", "--strict"], cwd=project, check=False).returncode:
            sys.exit("Building the site failed, see above.")
        if destination.exists():
            shutil.rmtree(destination)
        shutil.move(project / "site", destination)


def _copy_pages(pages: Path) -> None:
    pages.mkdir()
    for document in (*_ROOT.glob("*.md"), _ROOT / "LICENSE"):
        shutil.copy(document, pages)
    for name in _FOLDERS:
        shutil.copytree(_ROOT / name, pages / name, ignore=shutil.ignore_patterns(*_EXCLUDED))
    folders = [path for path in pages.rglob("*") if path.is_dir()]
    with_pages = {path for path in folders if any(path.glob("*.md"))}  # the navigation lists these pages
    for folder in folders:
        if folder not in with_pages:
            names = sorted(path.name for path in folder.iterdir() if path not in with_pages)
            # Searches are for the pages of the documentation.
            lines = [
                "---",
                "search: {exclude: true}",
                "---",
                f"# {folder.relative_to(pages)}",
                "",
                *(f"- [{name}]({name})" for name in names),
            ]
            (folder / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
