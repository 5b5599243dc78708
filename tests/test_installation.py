"""Advice about extras and documentation fits how the program was installed."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eemtcleanupd.installation import Page, add_extra

ROOT = Path(__file__).parents[1]
TITLES = {
    page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "): page
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
}


def texts(*patterns: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of the repository that users read or run, with their content."""
    for pattern in patterns:
        for file in ROOT.glob(pattern):
            if file.is_file() and file.suffix not in {".png", ".pyc"}:
                yield file.relative_to(ROOT), file.read_text(encoding="utf-8")


def pipx_folder(folder: Path) -> Path:
    (folder / "pipx_metadata.json").touch()
    return folder


@pytest.mark.parametrize(
    ("prefix", "start"),
    [
        ("/usr/lib/eemtcleanupd", "make deb EXTRAS="),
        ("/usr/local/lib/eemtcleanupd", "make install EXTRAS="),
        ("/opt/eemtcleanupd", "docker build "),
    ],
)
def test_an_extra_is_added_in_the_way_of_the_installation(prefix: str, start: str) -> None:
    command = add_extra("plots", Path(prefix)).partition(": ")[2]
    assert command.startswith(start)
    assert "plots" in command
    assert "prefix=" not in command


def test_an_extra_is_added_to_the_prefix_of_make_install() -> None:
    command = add_extra("plots", Path("/opt/x y/lib/eemtcleanupd")).partition(": ")[2]
    assert shlex.split(command)[-1] == "prefix=/opt/x y"


def test_an_extra_is_added_to_the_environment_of_pipx(tmp_path: Path) -> None:
    assert "pipx install --force '.[" in add_extra("plots", pipx_folder(tmp_path))


def test_an_extra_is_added_to_the_environment_that_runs(tmp_path: Path) -> None:
    command = shlex.split(add_extra("plots", tmp_path).partition(": ")[2])
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[4].startswith(".[")


def test_adding_an_extra_keeps_those_that_are_installed(tmp_path: Path) -> None:
    command = shlex.split(add_extra("other", tmp_path).partition(": ")[2])
    assert {"other", "web"} <= set(command[-1].removeprefix(".[").removesuffix("]").split(","))


def test_no_text_names_the_package_to_pip() -> None:
    # The name is free on the public index: its owner would run code on the reader's machine.
    sources = (
        "*.md",
        "docs/**/*",
        "eemtcleanupd/**/*",
        "scripts/*",
        "packaging/**/*",
        "benchmarks/*",
        "Makefile",
    )
    named = [
        f"{file}: {line}"
        for file, text in texts(*sources)
        for line in text.splitlines()
        if re.search(r"pipx? install (-\S+ )*'?eemtcleanupd|\beemtcleanupd\[[a-z]", line)
    ]
    assert [line for line in named if "--no-index" not in line] == []


def test_each_page_exists_with_its_title() -> None:
    for page in Page:
        file, title = page.value
        assert TITLES[title] == ROOT / file


def test_messages_name_documents_only_through_their_page() -> None:
    named = [
        f"{file}: {path}"
        for file, text in texts(
            "eemtcleanupd/**/*", "etc/*", "scripts/*", "packaging/systemd/*.service", "packaging/man/*"
        )
        for path in re.findall(r"[\w-]+\.md\b", text)
        if file.name != "installation.py"
    ]
    assert named == []


def test_titles_in_descriptions_are_those_of_pages() -> None:
    named = {
        " ".join(title.replace("#", " ").split())
        for _, text in texts("eemtcleanupd/**/*.py", "etc/*.yaml")
        for title in re.findall(r'\bthe page\s(?:#\s)?\\?"([^"{\\]+)\\?"', text)
    }
    assert named
    assert named <= TITLES.keys()


def test_a_page_is_named_where_the_installation_has_it(tmp_path: Path) -> None:
    prefix = tmp_path / "lib/eemtcleanupd"
    assert str(ROOT / Page.DOCKER.value[0]) in Page.DOCKER.reference(prefix)
    installed = tmp_path / "share/doc/eemtcleanupd" / Page.DOCKER.value[0]
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert str(installed) in Page.DOCKER.reference(prefix)


@pytest.mark.parametrize("prefix", ["/usr", "/"])
def test_the_python_of_the_system_gets_advice_too(prefix: str) -> None:
    assert "plots" in add_extra("plots", Path(prefix))
    assert Page.DOCKER.value[1] in Page.DOCKER.reference(Path(prefix))
