"""Options before the command, the suggestion for a typo, the version, and the examples of ``--help``."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from eemtcleanupd import __version__
from eemtcleanupd.cli import main
from eemtcleanupd.cli.main import cli
from eemtcleanupd.cli.stdio import SafeStdout
from tests.cli.test_json import LEAVES
from tests.conftest import RunCli


@pytest.fixture
def configs(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("performance: {batch_size: 11}\n", encoding="utf-8")
    second.write_text("performance: {batch_size: 22}\n", encoding="utf-8")
    return first, second


def file_of(run_cli: RunCli, *args: str | Path) -> str | None:
    done = run_cli(*args)
    assert done.returncode == 0, done.stderr
    file: str | None = json.loads(done.stdout)["file"]
    return file


def test_options_before_and_after_the_command_are_the_same(
    configs: tuple[Path, Path], run_cli: RunCli
) -> None:
    first = configs[0]
    for call in (
        ("--config", first, "check", "--json"),
        (f"--config={first}", "--json", "check"),
        ("--json", "check", "--config", first),
    ):
        assert file_of(run_cli, *call) == str(first)


def test_the_option_behind_the_command_counts(configs: tuple[Path, Path], run_cli: RunCli) -> None:
    first, second = configs
    assert file_of(run_cli, "--config", first, "check", "--config", second, "--json") == str(second)


def test_options_before_a_group_reach_its_command(run_cli: RunCli, tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    for call in (("--config", missing, "trash", "list"), ("trash", "--config", missing, "list")):
        done = run_cli("--json", *call)
        assert done.returncode == 2
        assert str(missing) in json.loads(done.stdout)["error"]


def test_an_option_that_the_command_does_not_have_is_an_error(run_cli: RunCli) -> None:
    before, after = run_cli("--verbose", "status"), run_cli("status", "--verbose")
    assert (before.returncode, before.stderr) == (after.returncode, after.stderr) == (2, after.stderr)


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (["statsu"], "status"),
        (["trash", "lst"], "list"),
        (["restore", "x"], "trash restore"),
        (["clean", "--forse"], "--force"),
    ],
)
def test_a_typo_is_answered_with_what_was_meant(call: list[str], meant: str, run_cli: RunCli) -> None:
    done = run_cli(*call)
    assert done.returncode == 2
    assert meant in done.stderr.splitlines()[-1]


def test_an_unknown_word_or_nothing_is_an_error(run_cli: RunCli) -> None:
    assert run_cli("xyzzy").returncode == 2
    assert run_cli("--json").returncode == 2


def test_config_needs_a_file_before_and_after_the_command(run_cli: RunCli) -> None:
    before, after = run_cli("--config"), run_cli("check", "--config")
    assert (before.returncode, after.returncode) == (2, 2)
    assert before.stderr.splitlines()[-1] == after.stderr.splitlines()[-1]


def test_both_names_of_version(run_cli: RunCli) -> None:
    answers = {run_cli(option).stdout for option in ("-V", "--version")}
    assert len(answers) == 1
    assert __version__ in answers.pop()


def command_at(path: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        inner = command.get_command(click.Context(command), name)
        assert inner is not None
        command = inner
    return command


def example_lines(path: tuple[str, ...]) -> Iterator[list[str]]:
    for line in (command_at(path).epilog or "").splitlines():
        if line.startswith("  "):
            yield shlex.split(line, comments=True)


def parse(words: list[str]) -> tuple[str, ...]:
    """Parse a command line without running it; return the path of the command."""
    command: click.Command = cli
    path: list[str] = []
    context = command.make_context("eemtcleanupd", list(words))
    while isinstance(command, click.Group):
        name, inner, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert name is not None
        assert inner is not None
        path.append(name)
        command, context = inner, inner.make_context(name, words, parent=context)
    return tuple(path)


@pytest.mark.parametrize("path", [*LEAVES, ("run",)], ids=" ".join)
def test_each_help_has_examples_of_its_command(path: tuple[str, ...]) -> None:
    examples = list(example_lines(path))
    assert examples
    for program, *words in examples:
        assert program == "eemtcleanupd"
        assert parse(words) == path


@pytest.mark.parametrize("columns", [40, 60])
@pytest.mark.parametrize("command", ["", "clean", "hold", "trash", "trash purge", "status"])
def test_help_fits_into_a_narrow_terminal(run_cli: RunCli, command: str, columns: int) -> None:
    done = run_cli(*command.split(), "--help", env={"COLUMNS": str(columns)})
    assert done.returncode == 0
    text, *_ = done.stdout.partition("Examples:")  # these are for copying
    assert max(map(len, text.splitlines())) <= columns
    assert "..." not in text.replace("[ARGS]...", "")


def test_a_process_that_can_start_no_thread_gets_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    monkeypatch.setattr(sys, "argv", ["eemtcleanupd", "check"])
    assert main._run_command(SafeStdout(1)) == 3
    assert "ulimit -u" in capsys.readouterr().err
