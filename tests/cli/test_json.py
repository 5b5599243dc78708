"""``--json`` of every command: one document, errors included, and one name for one thing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from eemtcleanupd.cli.main import cli
from tests.conftest import Aged, RunCli

JOB = "ab1034c4-ce51-4d3a-9b8c-a89a7af0a326"
CONFIG = """\
trash: {grace_hours: 24}
backup: {enabled: true, path: ./backups}
api: {tokens_file: ./tokens}
notifications: {audit_log: {enabled: true}}
"""
# Every command with arguments, in an order in which each finds what the one before left.
CALLS = (
    ("check",),
    ("doctor",),
    ("roots",),
    ("clean", "--dry-run"),
    ("clean",),
    ("history",),
    ("history", ""),
    ("status",),
    ("report",),
    ("trash", "list"),
    ("backup", "list"),
    ("backup", "verify"),
    ("audit", "verify"),
    ("why", JOB),
    ("acknowledge", JOB),
    ("hold", JOB),
    ("holds",),
    ("release", JOB),
    ("trash", "restore", JOB),
    ("trash", "purge", "--yes"),
    ("backup", "restore", "2fcb7adc-no-such-job"),
    ("roots", "--accept"),
    ("rerun", JOB, "--url", "http://127.0.0.1:1"),
    ("reset", "--yes"),
    ("token", "add", "ops", "--scope", "read"),
    ("token", "list"),
    ("token", "revoke", "ops"),
    ("notify-test",),
    ("stop",),
    ("reload",),
    ("demo", "demo"),
)
SERVICE = {("run",)}  # test_run.py calls it


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each command that is not a group."""
    if not isinstance(command, click.Group):
        yield path
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from leaves(inner, (*path, name))


LEAVES = sorted(set(leaves(cli)) - SERVICE)


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every JSON object in a value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)


def assert_one_vocabulary(document: Any) -> None:
    for found in objects(document):
        assert "id" not in found
        assert "run" not in found or not isinstance(found["run"], str)
        space = found.get("space_freed", {"bytes": 0, "human_readable": ""})
        # The detail of a job has text, as the document of the API shows.
        assert (
            set(space) == {"bytes", "human_readable"} if "age_days" not in found else isinstance(space, str)
        )


def test_every_command_is_called_below() -> None:
    assert {leaf for leaf in LEAVES if not any(call[: len(leaf)] == leaf for call in CALLS)} == set()


@pytest.mark.slow
def test_every_command_answers_with_one_document(sample_store: Path, aged: Aged, run_cli: RunCli) -> None:
    store = aged(sample_store, 10)
    (store / "cleanup_config.yaml").write_text(CONFIG, encoding="utf-8")
    for call in CALLS:
        done = run_cli(*call, "--json", cwd=store)
        document = json.loads(done.stdout)
        assert_one_vocabulary(document)
        if isinstance(document, dict) and "exit_code" in document:
            assert (document["success"], document["exit_code"]) == (False, done.returncode), call
            assert document["error"], call


@pytest.mark.parametrize("leaf", LEAVES, ids=" ".join)
def test_every_error_is_a_document(leaf: tuple[str, ...], tmp_path: Path, run_cli: RunCli) -> None:
    for wrong in (("--no-such-option",), ("--config", tmp_path / "missing.yaml")):
        call = next(call for call in CALLS if call[: len(leaf)] == leaf)
        done = run_cli(*call, *wrong, "--json", cwd=tmp_path)
        document = json.loads(done.stdout)
        assert done.returncode == 2
        assert (document["success"], document["exit_code"]) == (False, 2)
        assert document["error"]
        assert done.stderr
