"""What a release is made of: the same bytes each time, with all that belongs in it and nothing else."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from eemtcleanupd import __version__
from tools import licences

PROJECT = Path(__file__).parents[2]
NAME = f"eemtcleanupd-{__version__}"
GENERATED = {"PKG-INFO", "setup.cfg"}

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("dist"), pytest.mark.timeout(600)]


def make(folder: Path, *targets: str, **environment: str) -> Path:
    """Run ``make`` with its work and its results below ``folder``."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", *targets, f"BUILD={folder}/build", f"OUT={folder}/out"],
        cwd=PROJECT,
        env=keep | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return folder / "out"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make dist`` makes."""
    return make(tmp_path_factory.mktemp("dist"), "dist")


@pytest.fixture(scope="module")
def sbom(dist: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((dist / f"{NAME}.cdx.json").read_text(encoding="utf-8"))
    return document


def test_made_again_elsewhere_they_are_the_same(dist: Path, tmp_path: Path) -> None:
    copy = tmp_path / "another/place"
    other = shutil.ignore_patterns(".venv", "build", "dist", "__pycache__", ".hypothesis", "*_cache")
    shutil.copytree(PROJECT, copy, symlinks=True, ignore=other)
    (copy / ".venv").symlink_to(PROJECT / ".venv")
    for path in copy.rglob("*"):
        if not path.is_symlink() and ".git" not in path.parts:
            os.utime(path, (1, 1))
            path.chmod(path.stat().st_mode & ~0o077)
    script = f"umask 077 && make packages BUILD={tmp_path}/build OUT={tmp_path}/out"
    keep = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    subprocess.run(
        ["sh", "-c", script],
        cwd=copy,
        env=keep | {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
    )
    for name in (f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"):
        assert (dist / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_the_wheel_holds_the_program_with_its_data_and_nothing_else(dist: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "eemtcleanupd"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {"eemtcleanupd/py.typed", "eemtcleanupd/web/templates/dashboard.html"} <= set(listed)
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        held = {name for name in wheel.namelist() if not name.startswith(f"{NAME}.dist-info/")}
        owners = {info.external_attr >> 16 & 0o777 for info in wheel.infolist()}
    files = {name.partition(".data/")[2] for name in held if ".data/" in name}
    scripts = {"cleanup_jobs.py", "rerun_job.py", "setup_cleanup_cron.sh"}
    units = {"eemt-cleanup.service", "eemt-cleanup.timer"}
    assert files == {f"scripts/{name}" for name in scripts} | {
        f"data/share/eemtcleanupd/{name}" for name in units
    }
    assert {name for name in held if ".data/" not in name} == set(listed)
    assert owners <= {0o644, 0o664, 0o755, 0o775}


def test_the_sdist_is_what_git_has(dist: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    with tarfile.open(dist / f"{NAME}.tar.gz") as sdist:
        members = sdist.getmembers()
    held = {member.name.removeprefix(f"{NAME}/") for member in members if not member.isdir()}
    assert {name for name in held if not name.startswith("eemtcleanupd.egg-info/")} - GENERATED == (
        set(listed) - GENERATED
    )
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}


def test_installed_from_the_wheel_it_runs_with_what_it_declares(dist: Path, tmp_path: Path) -> None:
    python = dist.parent / "build/runtime/bin/python"
    for arguments in (["demo", "store", "--jobs", "60"], ["clean", "--config", "store/cleanup_config.yaml"]):
        subprocess.run(
            [python, "-m", "eemtcleanupd", *arguments], cwd=tmp_path, check=True, capture_output=True
        )
    everything = (
        "import importlib, pkgutil, eemtcleanupd as top\n"
        "for module in pkgutil.walk_packages(top.__path__, 'eemtcleanupd.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
    )
    subprocess.run([python, "-c", everything], cwd=tmp_path, check=True)


def test_the_bill_of_materials_names_what_it_runs_with_and_no_tool_of_development(
    sbom: dict[str, list[dict[str, str]]],
) -> None:
    names = {re.sub(r"[-_.]+", "-", component["name"]).lower() for component in sbom["components"]}
    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    needed = setup["options"]["install_requires"] + setup["options.extras_require"]["apprise"]
    requirements = {re.split(r"[<>=]", line)[0].replace(".", "-") for line in needed.split()}
    assert requirements | {"eemtcleanupd"} <= names
    assert not {"pytest", "mypy", "pip", "setuptools"} & names
    versions = {
        component["version"] for component in sbom["components"] if component["name"] == "eemtcleanupd"
    }
    assert versions == {__version__}


def test_the_page_of_licences_is_current(sbom: dict[str, object]) -> None:
    assert licences.PAGE.read_text(encoding="utf-8") == licences.page(sbom), "make licences"


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ([{"license": {"id": "MIT"}}], "MIT"),
        ([{"license": {"name": "License :: OSI Approved :: BSD License"}}], "BSD"),
        ([{"license": {"id": "MIT"}}, {"license": {"name": "License :: OSI Approved"}}], "MIT"),
        ([{"expression": "(Apache-2.0 OR BSD-3-Clause) AND PSF-2.0"}], "Apache-2.0 BSD PSF-2.0"),
        ([{"license": {"id": "GPL-3.0-only"}}], None),
        ([{"expression": "MIT AND GPL-2.0-or-later"}], None),
        ([{"license": {"name": "Mine, ask me"}}], None),
        ([{"license": {"name": "License :: OSI Approved"}}], None),
        ([], None),
    ],
)
def test_a_licence_that_nobody_looked_at_is_refused(declared: list[object], found: str | None) -> None:
    component = {"name": "something", "licenses": declared}
    if found is None:
        with pytest.raises(ValueError, match=r"something: .* is not allowed"):
            licences.licences(component)
    else:
        assert licences.licences(component) == found.split()


def test_the_version_stands_in_one_place() -> None:
    # The pages that explain name the version that was measured; it stays there after the next release.
    elsewhere = [":!CHANGELOG.md", ":!tests/data", ":!docs/images", ":!docs/explanation"]
    found = subprocess.run(
        ["git", "grep", "-lwF", __version__, "--", *elsewhere],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["eemtcleanupd/__init__.py"]
