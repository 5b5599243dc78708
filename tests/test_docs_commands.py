"""Every command that the documents show is run as it is written, and answers what they show.

The commands of a page are one session of bash in a fresh demo store.  In what is shown ``…`` stands for
anything; times, sizes, run ids and the like may be others.  What cannot be run so is in ``ELSEWHERE``.
"""

from __future__ import annotations

import fnmatch
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from eemtcleanupd.config.yaml_reader import read_document
from eemtcleanupd.plugins import schema
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
}
SCRIPTS = {"sh", "bash", "shell"}
SESSIONS = {"console", "shell-session"}
NO_COMMANDS = {
    "",
    "cron",
    "diff",
    "dockerfile",
    "html",
    "ini",
    "json",
    "markdown",
    "nginx",
    "python",
    "sql",
    "text",
    "toml",
    "yaml",
}


@dataclass(frozen=True)
class Elsewhere:
    """Commands that are not run here, by page (a glob) and beginning: where they are, and why."""

    page: str
    command: str
    tested_in: str
    reason: str


ELSEWHERE = (
    Elsewhere("README.md", "make run", "tests/test_docs_commands.py", "make test is what runs this"),
    Elsewhere("README.md", "make deb", "tests/system/test_debian.py", "needs a machine of its own"),
    Elsewhere("README.md", "docker build", "tests/packaging/test_docker.py", "needs an engine"),
    Elsewhere("*", "make install", "tests/system/test_service.py", "needs a machine of its own"),
    Elsewhere("*", "pipx install ", "tests/system/test_service.py", "make install does it"),
    Elsewhere("*", "pip install ", "tests/system/test_service.py", "make install does it, into a new venv"),
    Elsewhere("*", "python3 -m venv", "tests/system/test_service.py", "as above"),
    Elsewhere(
        "docs/how-to/uninstall.md",
        "./scripts/setup_cleanup_cron.sh remove",
        "tests/system/test_schedulers.py",
        "needs a booted machine",
    ),
    Elsewhere("*", "systemctl ", "tests/system/test_service.py", "needs a booted machine"),
    Elsewhere(
        "docs/how-to/http-api.md",
        "# Trigger cleanup",
        "tests/web/test_docs_api.py",
        "the answers are looked at",
    ),
    Elsewhere(
        "docs/how-to/notifications.md",
        "eemtcleanupd notify-test",
        "tests/cli/test_notify_test.py",
        "needs servers",
    ),
    Elsewhere(
        "docs/how-to/reports-and-capacity.md",
        "eemtcleanupd report --plot",
        "tests/cli/test_report.py",
        "a history",
    ),
    Elsewhere(
        "docs/how-to/speed-and-clusters.md",
        "dask ",
        "tests/deletion/test_dask_executor.py",
        "needs certificates",
    ),
    Elsewhere(
        "docs/how-to/web-interface-database.md",
        "",
        "tests/cleanup/test_other_databases.py",
        "needs a /tmp of its own",
    ),
    Elsewhere(
        "docs/how-to/cron-and-timers.md", "", "tests/system/test_schedulers.py", "needs a booted machine"
    ),
    Elsewhere(
        "docs/how-to/install-and-upgrade.md", "", "tests/system/test_debian.py", "needs a booted machine"
    ),
    Elsewhere("docs/how-to/docker.md", "", "tests/packaging/test_docker.py", "needs an engine"),
    Elsewhere("docs/how-to/kubernetes.md", "", "tests/packaging/test_kubernetes.py", "needs a cluster"),
)
BEFORE = {
    "docs/tutorial/first-cleanup.md": "cd .. && rm -r store",  # it begins with nothing
    "docs/how-to/restore-a-job.md": "echo 'trash: {grace_hours: 24}' >> cleanup_config.yaml",
    "docs/how-to/back-up-jobs.md": "echo 'backup: {enabled: true, path: ./backup}' >> cleanup_config.yaml",
    "docs/how-to/http-api.md": "echo 'api: {tokens_file: ./tokens.json}' >> cleanup_config.yaml",
}
"""What is done before the first command of a page."""

VARIES = {
    "<token>": r"eemt_[\w-]{43}",
    "<run>": r"\b\d{8}T\d{6}-[0-9a-f]{4}\b",
    "<stamp>": r"\b\d{8}T\d{12}Z\b",
    "<time>": r"(?:\b[A-Z][a-z]{2} )?\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d)?(?:\.\d+)?"
    r"(?: ?[+-]\d\d:?\d\d|Z)?",
    "<ago>": r"\b(?:now|an? \w+ ago|\d+ \w+ ago)\b",
    "<duration>": r"\b(?:\d+(?:\.\d+)?|an?) (?:second|minute|hour|day)s?\b",
    "<size>": r"\b(?!0 B)\d+(?:\.\d+)? (?:[KMGT]?B|%)(?!\w)",
    "<process>": r"\bprocess \d+(?: on \S+)?(?=[,.])",
}
"""What is different each time."""


@dataclass(frozen=True)
class Step:
    """A command of a page, its line, and what the page shows of its answer (None: nothing)."""

    line: int
    command: str
    shown: str | None = None


def fences(text: str) -> list[Token]:
    return [token for token in MarkdownIt().parse(text) if token.type in {"fence", "code_block"}]


def steps(text: str) -> Iterator[Step]:
    for fence in fences(text):
        assert fence.map
        language = fence.info.split(" ")[0]
        if language in SCRIPTS:
            yield Step(fence.map[0] + 2, fence.content)
        elif language in SESSIONS:
            prompt = re.escape(fence.content[:2])
            each = rf"^{prompt}(.*(?:\n> .*)*)\n((?:(?!{prompt}).*\n)*)"
            for found in re.finditer(each, fence.content, re.MULTILINE):
                line = fence.map[0] + 2 + fence.content.count("\n", 0, found.start())
                yield Step(line, found[1].replace("\n> ", "\n"), found[2] or None)


def elsewhere(page: str, step: Step) -> Elsewhere | None:
    return next(
        (
            each
            for each in ELSEWHERE
            if fnmatch.fnmatch(page, each.page) and step.command.startswith(each.command)
        ),
        None,
    )


SHOWN = {page: [step for step in steps(text) if not elsewhere(page, step)] for page, text in PAGES.items()}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", sorted(page for page, shown in SHOWN.items() if shown))
def test_the_commands_of_a_page_run_and_answer_what_it_shows(page: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    stand_ins = {
        "/path/to/eemt/web-interface": str(store),
        "api: {enabled: true,": f"api: {{enabled: true, listen: '127.0.0.1:{(port := free_port())}',",
        "localhost:5001": f"localhost:{port}",
    }
    prepared = f"eemtcleanupd demo {store} --jobs 40 && cd {store} && {BEFORE.get(page, 'true')}"
    try:
        answers = session([Step(0, prepared), *SHOWN[page]], stand_ins, tmp_path)
    finally:
        if "--detach" in PAGES[page]:
            for config in tmp_path.rglob("cleanup_config.yaml"):
                session([Step(0, f"eemtcleanupd stop --config {config}")], {}, tmp_path)
    for step, (code, answer) in zip(SHOWN[page], answers[1:], strict=False):
        where = f"{page}:{step.line}: $ {step.command}"
        assert code == 0, f"{where}\nends with {code}:\n{answer}"
        if step.shown is not None and not re.fullmatch(pattern(step.shown), normal(answer)):
            pytest.fail(f"{where}\n--- the page shows\n{step.shown}--- it prints\n{answer}", pytrace=False)
    assert len(answers) == 1 + len(SHOWN[page])


def session(commands: list[Step], stand_ins: dict[str, str], folder: Path) -> list[tuple[int, str]]:
    """Run commands in one bash until one fails; return the exit code and the output of each."""
    mark = uuid.uuid4().hex
    script = "exec </dev/null\n"
    for step in commands:
        command = step.command
        for written, meant in stand_ins.items():
            command = command.replace(written, meant)
        script += f"{{\n{command}\n}}\ncode=$?; echo {mark} $code; [ $code = 0 ] || exit 0\n"
    (folder / "session.sh").write_text(script)
    kept = {name: os.environ[name] for name in ("TZ",) if name in os.environ}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # A file and no pipe: what goes into the background would keep a pipe open.
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            ["bash", folder / "session.sh"],
            cwd=folder,
            env={**kept, "PATH": path, "HOME": str(folder), "LANG": "C.UTF-8"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(200)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        output.seek(0)
        parts = re.split(rf"{mark} (\d+)\n", output.read())
    return [(int(code), answer) for answer, code in zip(parts[0::2], parts[1::2], strict=False)]


def normal(text: str) -> str:
    for name, varying in VARIES.items():
        text = re.sub(varying, name, text)
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    return text if text.endswith("\n") else f"{text}\n"


def pattern(shown: str) -> str:
    """Return the regular expression of what is shown: a line ``…`` is any lines, another ``…`` any text."""
    lines = normal(shown).splitlines()
    return "".join(
        r"(?:.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n" for line in lines
    )


def test_what_is_not_run_here_is_shown_somewhere_and_has_a_test() -> None:
    used = {elsewhere(page, step) for page, text in PAGES.items() for step in steps(text)}
    assert set(ELSEWHERE) <= used
    for each in ELSEWHERE:
        assert (ROOT / each.tested_in).is_file(), each


def test_every_block_is_known_to_have_commands_or_none() -> None:
    for page, text in PAGES.items():
        for fence in fences(text):
            language = fence.info.split(" ")[0]
            where = f"{page}:\n{fence.content}"
            assert language in SCRIPTS | SESSIONS | NO_COMMANDS, (
                f"{where}{language}: a language of commands, or none?"
            )
            has_prompt = re.search(r"^\$ ", fence.content, re.MULTILINE)
            begins_with_prompt = fence.content.startswith(("$ ", "# "))
            assert begins_with_prompt if language in SESSIONS else not has_prompt, where


@pytest.mark.slow
def test_make_run_shows_a_demo_and_cleans_it(tmp_path: Path) -> None:
    assert "make run" in PAGES["README.md"]
    venv = Path(sys.executable).parents[1]
    done = subprocess.run(
        # -o: the environment that runs this is never rebuilt, however old it is.
        ["make", "run", "-o", f"{venv}/.ready", f"VENV={venv}", f"DEMO={tmp_path / 'demo'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "[DRY RUN] Summary: Would clean" in done.stdout
    assert "[INFO] Cleanup completed successfully" in done.stdout


@pytest.mark.xdist_group("jsonschema")
def test_the_configurations_that_are_shown_are_valid(tmp_path: Path) -> None:
    import jsonschema  # slow

    rules = schema().json_schema()
    validator = jsonschema.Draft202012Validator(rules)
    file = tmp_path / "cleanup_config.yaml"
    checked = 0
    for page, text in PAGES.items():
        for fence in fences(text):
            if fence.info != "yaml" or "notifications:\n  ntfy:" in fence.content:  # an outsider's block
                continue
            file.write_text(fence.content)
            shown = read_document(file)
            if shown.data.keys() & rules["properties"].keys():
                checked += 1
                errors = [error.message for error in validator.iter_errors(shown.data)]
                assert shown.problems + errors == [], f"{page}:\n{fence.content}"
    assert checked > 5
