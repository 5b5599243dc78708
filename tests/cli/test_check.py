"""``check`` shows the effective configuration and changes nothing."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunCli

SECRET = "https://hooks.slack.com/services/T0/B0/verysecret"
CONFIG = f"""\
retention:
  failed_jobs: {{hours: 24}}
paths: {{database: missing/jobs.db}}
notifications: {{slack: {{webhook_url: {SECRET}}}}}
"""


def test_check_shows_file_keys_values_and_origins(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "cleanup_config.yaml"
    file.write_text(CONFIG)
    result = run_cli("check", env={"EEMT_CLEANUP_BATCH_SIZE": "50", "EEMT_CLEANUP_BACH_SIZE": "5"})
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert result.stdout.startswith(f"Configuration file: {file}\n")
    assert ["retention.failed_jobs.hours", "24", f"{file}:2"] in lines
    assert ["performance.batch_size", "50", "EEMT_CLEANUP_BATCH_SIZE"] in lines
    assert ["performance.max_workers", "4", "default"] in lines
    assert ["notifications.slack.webhook_url", "********", f"{file}:4"] in lines
    assert re.search(r"^\[WARNING\] .*EEMT_CLEANUP_BACH_SIZE", result.stdout, re.MULTILINE)
    assert "verysecret" not in result.stdout


def test_json_has_the_same_values(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG)
    result = run_cli("check", "--json", "--config", file, env={"EEMT_CLEANUP_BACH_SIZE": "5"})
    answer = json.loads(result.stdout)
    assert answer["file"] == str(file)
    assert {"key": "retention.failed_jobs.hours", "value": 24, "from": f"{file}:2"} in answer["settings"]
    assert {"key": "plugins", "value": [], "from": "default"} in answer["settings"]
    assert len(answer["warnings"]) == 2
    assert "successful" in answer["policy"]
    assert "verysecret" not in result.stdout


def test_without_a_file_all_values_are_defaults(run_cli: RunCli, tmp_path: Path) -> None:
    answer = json.loads(run_cli("check", "--json").stdout)
    assert answer["file"] is None
    assert {setting["from"] for setting in answer["settings"]} == {"default"}


def test_check_survives_an_unusable_database_and_changes_nothing(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"not a database")
    assert run_cli("check").returncode == 3
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.db"]


def test_an_invalid_configuration_exits_with_2_and_its_errors(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "cleanup_config.yaml"
    file.write_text("dry_run: perhaps\n")
    result = run_cli("check")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"eemtcleanupd: error: {file}:1:10: dry_run: ")
    assert "'perhaps'" in result.stderr


def test_changed_shows_only_what_differs_from_the_default(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "cleanup_config.yaml"
    file.write_text(
        CONFIG + "performance: {batch_size: 100}\nplugins: []\nlogging: {file: ./logs/cleanup.log}\n"
    )
    answer = json.loads(run_cli("check", "--changed", "--json", env={"EEMT_DRY_RUN": "true"}).stdout)
    assert {setting["key"]: setting["from"] for setting in answer["settings"]} == {
        "dry_run": "EEMT_DRY_RUN",
        "retention.failed_jobs.hours": f"{file}:2",
        "paths.database": f"{file}:3",
        "notifications.slack.webhook_url": f"{file}:4",
    }


def test_changed_without_a_file_shows_no_key(run_cli: RunCli) -> None:
    result = run_cli("check", "--changed")
    assert result.returncode == 0
    assert "performance." not in result.stdout


def test_no_key_differs_that_is_set_to_its_default(run_cli: RunCli, tmp_path: Path) -> None:
    document: dict[str, Any] = {}
    for setting in json.loads(run_cli("check", "--json").stdout)["settings"]:
        *blocks, name = setting["key"].split(".")
        block = document
        for part in blocks:
            block = block.setdefault(part, {})
        if setting["value"] is not None:
            block[name] = setting["value"]
    (tmp_path / "cleanup_config.yaml").write_text(json.dumps(document), encoding="utf-8")
    assert json.loads(run_cli("check", "--changed", "--json").stdout)["settings"] == []


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize(
    ("config", "code"),
    [
        ("api: {enabled: true}", 2),
        ("api: {enabled: true, tokens_file: none.json}", 2),
        ("api: {enabled: true, listen: 'unix:s', tls_cert_file: a.pem, tls_key_file: b.pem}", 2),
        ("backup: {enabled: true}\nblocked_plugins: [backup]", 2),
        ("paths: {results: missing}", 3),
        ("plugins: [no_such_module]", 2),
        ("logging: {file: jobs.db/cleanup.log}", 2),
        ("logging: {file: results}", 2),
        ("notifications: {audit_log: {path: results}}", 3),
    ],
)
def test_check_and_doctor_refuse_what_a_daemon_refuses_at_its_start(
    run_cli: RunCli, sample_store: Path, config: str, code: int
) -> None:
    (sample_store / "cleanup_config.yaml").write_text(f"database: {{timezone: UTC}}\n{config}\n")
    run, check = (run_cli(command, "--json", cwd=sample_store) for command in ("run", "check"))
    refusal, answer = json.loads(run.stdout), json.loads(check.stdout)
    assert (run.returncode, check.returncode) == (code, code)
    # What follows names the other job databases of the machine, which tests create and delete.
    (problem,) = answer.get("problems") or [answer["error"]]
    assert problem.partition(". ")[0] == refusal["error"].partition(". ")[0]
    assert run_cli("doctor", cwd=sample_store).returncode != 0


def test_a_database_that_is_still_missing_is_warned_of(run_cli: RunCli, sample_store: Path) -> None:
    (sample_store / "jobs.db").unlink()
    result = run_cli("check", "--json", cwd=sample_store)
    answer = json.loads(result.stdout)
    assert (result.returncode, answer["problems"]) == (0, [])
    assert answer["database"]["error"] is not None


def test_a_file_that_is_no_job_database_is_refused(run_cli: RunCli, sample_store: Path) -> None:
    with closing(sqlite3.connect(sample_store / "jobs.db")) as connection:
        connection.execute("DROP TABLE jobs")
    result = run_cli("check", "--json", cwd=sample_store)
    assert (result.returncode, len(json.loads(result.stdout)["problems"])) == (3, 1)


def test_a_usable_configuration_has_no_problems(run_cli: RunCli, sample_store: Path) -> None:
    result = run_cli("check", "--json", cwd=sample_store)
    assert (result.returncode, json.loads(result.stdout)["problems"]) == (0, [])


@pytest.mark.parametrize(
    ("config", "warnings"),
    [
        ("notifications: {ping: {url: 'http://localhost/'}}", 1),
        ("notifications: {ping: {url: 'http://localhost/', enabled: false}}", 0),
        ("backup: {path: backups}", 1),
        ("notifications: {audit_log: {text_copy: true}}", 0),
        ("api: {public_url: 'https://eemt.example.org'}", 0),
    ],
)
def test_settings_of_a_channel_that_nobody_switched_on_are_warned_of(
    run_cli: RunCli, tmp_path: Path, config: str, warnings: int
) -> None:
    (tmp_path / "cleanup_config.yaml").write_text(config)
    assert len(json.loads(run_cli("check", "--json").stdout)["warnings"]) == warnings
