"""The precedence and origin of values, paths, secrets, and the content of errors."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings, strategies as st

from eemtcleanupd.config import Loaded, find_file, loading
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.plugins import load, schema
from tests.config.conftest import LoadText, RefuseText

FIELDS = schema().fields

DOCUMENT = Path(__file__).parents[1] / "data" / "cleanup_config_document.yaml"
SECRET = "https://hooks.slack.com/services/T0/B0/verysecret"


def settings_of(loaded: Loaded) -> dict[str, tuple[object, str]]:
    return {setting.key: (setting.value, setting.origin) for setting in loaded.settings()}


def test_the_documented_example_loads_unchanged() -> None:
    loaded = load(DOCUMENT, environ={}, cwd=Path("/elsewhere"))
    config = loaded.config
    assert loaded.warnings == ()
    assert (config.retention.successful_jobs.hours, config.retention.failed_jobs.hours) == (168, 12)
    assert config.retention.failed_jobs.keep_error_logs
    assert config.schedule.enabled
    assert config.paths.results == DOCUMENT.parent / "results"
    assert config.notifications.email.recipients == ("admin@example.com",)
    assert settings_of(loaded)["performance.max_workers"] == (4, f"{DOCUMENT}:28")


def test_the_later_source_wins_and_is_the_origin(load_text: LoadText, tmp_path: Path) -> None:
    text = (
        "retention:\n  successful_jobs: {hours: 1}\n  failed_jobs: {hours: 2}\nperformance: {batch_size: 3}"
    )
    environ = {"EEMT_FAILED_RETENTION_HOURS": "20", "EEMT_CLEANUP_BATCH_SIZE": "30"}
    options = {"performance.batch_size": (300, "--batch-size")}
    found = settings_of(load_text(text, environ=environ, options=options))
    assert found["retention.successful_jobs.hours"] == (1, f"{tmp_path}/conf/cleanup_config.yaml:2")
    assert found["retention.failed_jobs.hours"] == (20, "EEMT_FAILED_RETENTION_HOURS")
    assert found["performance.batch_size"] == (300, "--batch-size")
    assert found["performance.max_workers"] == (4, "default")


def test_all_keys_are_listed_except_the_deprecated_one() -> None:
    found = settings_of(load(None, environ={}, cwd=Path("/")))
    assert set(found) == set(FIELDS) - {"retention.successful_jobs.days"}


def test_days_are_converted_to_hours(load_text: LoadText, tmp_path: Path) -> None:
    found = settings_of(load_text("retention:\n  successful_jobs:\n    days: 3.5\n"))
    assert found["retention.successful_jobs.hours"] == (84, f"{tmp_path}/conf/cleanup_config.yaml:3")


def test_days_and_hours_together_are_an_error(refuse_text: RefuseText) -> None:
    message = refuse_text("retention:\n  successful_jobs:\n    days: 7\n    hours: 168\n")
    assert message.startswith(
        "FILE:3:11: retention.successful_jobs.days: retention.successful_jobs.hours in FILE:4"
    )


@pytest.mark.parametrize("days", ["-1", "seven", "[7]"])
def test_days_are_checked_under_their_own_name(refuse_text: RefuseText, days: str) -> None:
    message = refuse_text(f"retention: {{successful_jobs: {{days: {days}}}}}")
    assert message.startswith("FILE:1:37: retention.successful_jobs.days: ")


def test_every_problem_is_reported_at_once(refuse_text: RefuseText) -> None:
    message = refuse_text(
        "dry_run: 1\nretention:\n  failed_jobs: {hours: x}\nnonsense: 1\n",
        environ={"EEMT_CLEANUP_BATCH_SIZE": "0"},
    )
    lines = message.splitlines()
    assert "4" in lines[0]
    places = {line.strip().split(": ")[0] for line in lines[1:]}
    assert places == {"FILE:1:10", "FILE:3:24", "FILE:4:1", "EEMT_CLEANUP_BATCH_SIZE"}


def test_a_long_list_of_problems_is_cut(refuse_text: RefuseText) -> None:
    lines = refuse_text("".join(f"key{n}: 1\n" for n in range(70))).splitlines()
    assert len(lines) == 52
    assert "20" in lines[-1]


def test_an_invalid_value_in_the_file_is_an_error_even_if_a_variable_overrides_it(
    refuse_text: RefuseText,
) -> None:
    message = refuse_text(
        "retention: {failed_jobs: {hours: x}}", environ={"EEMT_FAILED_RETENTION_HOURS": "3"}
    )
    assert message.startswith("FILE:1:34: retention.failed_jobs.hours: ")


def test_an_invalid_option_is_an_error_with_its_name() -> None:
    options = {"performance.max_workers": (0, "--workers")}
    with pytest.raises(ConfigError, match=r"^--workers: performance\.max_workers: "):
        load(None, environ={}, options=options, cwd=Path("/"))


@pytest.mark.parametrize("key", ["paths.results", "paths.database"])
def test_an_empty_path_as_an_option_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"^--it: "):
        load(None, environ={}, options={key: ("", "--it")}, cwd=Path("/"))


@pytest.mark.parametrize(
    "row",
    [
        ("", {}, {}, "paths.results", "conf/results"),
        ("", {}, {}, "paths.database", "conf/jobs.db"),
        ("", {}, {}, "backup.path", "conf/backup"),
        ("paths: {results: ../r}", {}, {}, "paths.results", "conf/../r"),
        ("paths: {results: /r}", {}, {}, "paths.results", "/r"),
        ("paths: {database: sqlite:///j.db}", {}, {}, "paths.database", "conf/j.db"),
        ("paths: {database: sqlite:////var/j.db}", {}, {}, "paths.database", "/var/j.db"),
        ("paths: {results: ./r}", {"EEMT_RESULTS_DIR": "e"}, {}, "paths.results", "e"),
        ("", {}, {"paths.results": ("o", "--results-dir")}, "paths.results", "o"),
        ("", {"EEMT_BASE_DIR": "/b"}, {}, "paths.temp", "/b/temp"),
        ("paths: {temp: t}", {"EEMT_BASE_DIR": "/b"}, {}, "paths.temp", "conf/t"),
        ("", {"EEMT_BASE_DIR": "/b", "EEMT_UPLOADS_DIR": "/u"}, {}, "paths.uploads", "/u"),
        ("", {}, {}, "logging.file", "conf/logs/cleanup.log"),
        ("paths: {logs: /l}", {}, {}, "logging.file", "/l/cleanup.log"),
        ("paths: {logs: /l}", {}, {}, "notifications.audit_log.path", "/l/cleanup_audit.jsonl"),
        ("paths: {logs: /l}\nlogging: {file: x.log}", {}, {}, "logging.file", "conf/x.log"),
        ("metrics: {textfile: m.prom}", {}, {}, "metrics.textfile", "conf/m.prom"),
    ],
)
def test_a_relative_path_is_relative_to_the_file_or_the_working_directory(
    load_text: LoadText, tmp_path: Path, row: tuple[str, dict[str, str], dict[str, Any], str, str]
) -> None:
    text, environ, options, key, expected = row
    found = settings_of(load_text(text, environ=environ, options=options))
    assert found[key][0] == str(tmp_path / expected)


def test_without_a_file_default_paths_are_in_the_working_directory() -> None:
    assert load(None, environ={}, cwd=Path("/here")).config.paths.logs == Path("/here/logs")


def test_the_file_is_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "etc.yaml"
    monkeypatch.setattr(loading, "SYSTEM_FILE", system)
    environ = {"EEMT_CLEANUP_CONFIG": "env.yaml"}
    assert find_file(None, {"EEMT_CLEANUP_CONFIG": ""}, tmp_path) is None
    for name in ("etc.yaml", "cleanup_config.yaml", "env.yaml", "explicit.yaml"):
        (tmp_path / name).touch()
    assert find_file(Path("explicit.yaml"), environ, tmp_path) == tmp_path / "explicit.yaml"
    assert find_file(None, environ, tmp_path) == tmp_path / "env.yaml"
    assert find_file(None, {}, tmp_path) == tmp_path / "cleanup_config.yaml"
    (tmp_path / "cleanup_config.yaml").unlink()
    assert find_file(None, {}, tmp_path) == system


@pytest.mark.parametrize(
    ("explicit", "environ", "source"),
    [(Path("no.yaml"), {}, "--config"), (None, {"EEMT_CLEANUP_CONFIG": "no.yaml"}, "EEMT_CLEANUP_CONFIG")],
)
def test_a_missing_file_that_an_option_or_variable_names_is_an_error(
    tmp_path: Path, explicit: Path | None, environ: dict[str, str], source: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        find_file(explicit, environ, tmp_path)
    assert f"{tmp_path}/no.yaml" in str(caught.value)
    assert source in str(caught.value)


def test_an_inaccessible_file_is_not_replaced_by_other_rules(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert find_file(None, {}, tmp_path / "loop") == tmp_path / "loop" / "cleanup_config.yaml"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_current_folder_that_the_user_cannot_enter_is_not_searched(tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path = {sys.path!r}
from pathlib import Path
from eemtcleanupd.config import find_file, loading
local, loading.SYSTEM_FILE = Path.cwd() / loading.FILE_NAME, Path("/etc/passwd")
find_file(None, {{}}, Path.cwd(), earlier=local)  # imports what that user might not be able to read
os.setgroups([])
os.setresgid(12345, 12345, 12345)
os.setresuid(12345, 12345, 12345)
print(find_file(None, {{}}, Path.cwd()))
print(find_file(None, {{}}, Path.cwd(), earlier=local))
"""
    tmp_path.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["/etc/passwd", str(tmp_path / "cleanup_config.yaml")]


def test_a_dangling_link_is_not_replaced_by_other_rules(tmp_path: Path) -> None:
    (tmp_path / "cleanup_config.yaml").symlink_to("gone")
    file = find_file(None, {}, tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/cleanup_config.yaml")):
        load(file, environ={}, cwd=tmp_path)


class TestSecrets:
    """Secrets are read from all sources and never shown."""

    @pytest.fixture(params=["plain", "variable", "file", "credential"])
    def loaded(self, request: pytest.FixtureRequest, load_text: LoadText, tmp_path: Path) -> Loaded:
        (tmp_path / "conf").mkdir()
        environ = {}
        match request.param:
            case "plain":
                line = f"webhook_url: {SECRET}"
            case "variable":
                line, environ = "webhook_url: ${HOOK}", {"HOOK": SECRET}
            case "file":
                line = "webhook_url_file: hook.txt"
                (tmp_path / "conf" / "hook.txt").write_text(f"{SECRET}\n")
            case _:
                line, environ = "webhook_url_file: hook", {"CREDENTIALS_DIRECTORY": str(tmp_path / "creds")}
                (tmp_path / "creds").mkdir()
                (tmp_path / "creds" / "hook").write_text(SECRET)
        return load_text(f"notifications:\n  slack:\n    enabled: true\n    {line}\n", environ=environ)

    def test_a_secret_is_read(self, loaded: Loaded, tmp_path: Path) -> None:
        url = loaded.config.notifications.slack.webhook_url
        assert url is not None
        assert url.get_secret_value() == SECRET
        assert loaded.origins["notifications.slack.webhook_url"] == f"{tmp_path}/conf/cleanup_config.yaml:4"

    def test_a_secret_is_never_shown(self, loaded: Loaded) -> None:
        assert "verysecret" not in f"{loaded!r} {loaded.config} {list(loaded.settings())}"
        assert settings_of(loaded)["notifications.slack.webhook_url"][0] == "********"

    @pytest.mark.parametrize(
        ("line", "key", "detail"),
        [
            ("webhook_url: '${HOOK}'", "webhook_url", "HOOK"),
            ("webhook_url_file: absent", "webhook_url_file", "conf/absent: No such file"),
            ("webhook_url_file: empty", "webhook_url_file", "conf/empty is empty"),
            ("webhook_url_file: binary", "webhook_url_file", "UTF-8"),
            (f"webhook_url_file: x, webhook_url: '{SECRET}'", "webhook_url_file", "slack.webhook_url is set"),
        ],
    )
    def test_a_secret_that_cannot_be_read_is_an_error(
        self, refuse_text: RefuseText, tmp_path: Path, line: str, key: str, detail: str
    ) -> None:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "empty").touch()
        (tmp_path / "conf" / "binary").write_bytes(b"\xff")
        message = refuse_text(f"notifications: {{slack: {{enabled: true, {line}}}}}")
        assert message.startswith("FILE:1:")
        assert f"notifications.slack.{key}: " in message
        assert detail in message

    def test_secrets_of_a_disabled_block_are_not_read(self, load_text: LoadText) -> None:
        text = "notifications: {slack: {enabled: false, webhook_url_file: absent}}"
        assert load_text(text).config.notifications.slack.webhook_url is None

    @pytest.mark.parametrize(
        "text",
        [
            f"notifications: {{slack: '{SECRET}'}}",
            f"notifications: '{SECRET}'",
            f"notifications: {{slack: {{webhook_url: ['{SECRET}']}}}}",
            f"notifications: {{slack: {{webhook_url: '{SECRET}', webhook_url: '{SECRET}'}}}}",
            f"notifications: {{slack: {{webhok_url: '{SECRET}'}}}}",
            "paths: 'postgresql://u:verysecret@h/d'",
            "paths: {database: ['postgresql://u:verysecret@h/d']}",
        ],
    )
    def test_no_error_shows_a_secret(self, refuse_text: RefuseText, text: str) -> None:
        assert "verysecret" not in refuse_text(text)

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://eemt:verysecret@db/eemt",
            "postgresql+psycopg://eemt:very/secret@verysecret@db/eemt",
            "postgresql://db/eemt?user=x&password=verysecret",
        ],
    )
    def test_the_password_of_a_database_is_never_shown(self, load_text: LoadText, url: str) -> None:
        loaded = load_text(f"paths: {{database: '{url}'}}")
        assert loaded.config.paths.database == url
        shown = f"{loaded!r} {loaded.config} {list(loaded.settings())}"
        assert "secret" not in shown
        assert "***" in shown

    def test_the_password_of_a_database_may_be_a_variable(self, load_text: LoadText) -> None:
        loaded = load_text(
            "paths: {database: 'postgresql://u:${PGPASS}@db/eemt'}", environ={"PGPASS": "hunter2"}
        )
        assert loaded.config.paths.database == "postgresql://u:hunter2@db/eemt"
        assert "hunter2" not in repr(loaded)


def test_a_loaded_configuration_is_immutable(load_text: LoadText) -> None:
    loaded = load_text()
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.file = None  # type: ignore[misc]  # the test assigns on purpose
    with pytest.raises(ValueError, match="frozen"):
        loaded.config.dry_run = True  # type: ignore[misc]  # the test assigns on purpose
    with pytest.raises(TypeError):
        loaded.origins["dry_run"] = "me"  # type: ignore[index]  # the test assigns on purpose


EXAMPLES = int(os.environ.get("STRESS_EXAMPLES", "150"))
# A busy machine is no failure.
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
KEYS = [*sorted({part for key in FIELDS for part in key.split(".")}), "x", "<<", "", "null", "1"]
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.dates(),
        st.sampled_from(
            ["${X}", "@daily", "* * * * *", "5L * * * 1#2", "postgresql://a:b@c/d", "local", "1e3"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=25,
)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
@given(data=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
@example(data={"plugins": [""]})
@example(data={"plugins": [" "]})
@example(data={"plugins": ["."]})
@example(data={"plugins": [":x"]})
@example(data={"plugins": ["eemtcleanupd.formatting"]})
@example(data={"plugins": ["eemtcleanupd.notifiers.email"]})
@example(data={"blocked_plugins": [""]})
def test_any_mapping_loads_or_is_a_configuration_error(load_text: LoadText, data: dict[str, Any]) -> None:
    try:
        load_text(yaml.safe_dump(data, allow_unicode=True))
    except ConfigError as error:
        message = str(error)
    else:
        return
    assert "cleanup_config.yaml:" in message


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
@given(text=st.one_of(st.text(alphabet="0123456789*/,-L#W@ MONJAN", max_size=30), st.text(max_size=10)))
def test_any_schedule_loads_or_is_a_configuration_error(text: str) -> None:
    try:
        load(None, environ={}, options={"schedule.cron": (text, "--cron")}, cwd=Path("/"))
    except ConfigError as error:
        message = str(error)
    else:
        return
    assert message.startswith("--cron: ")


def test_loading_imports_no_slow_library(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from eemtcleanupd.plugins import load\n"
        "load(Path(sys.argv[1]), environ={}, cwd=Path('/'))\n"
        "print({'sqlalchemy', 'click', 'rich', 'requests', 'cronsim', 'jsonschema'} & set(sys.modules))"
    )
    file = tmp_path / "c.yaml"
    file.write_text("dry_run: true\n")
    output = subprocess.run(
        [sys.executable, "-c", program, file],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    ).stdout
    assert output.strip() == "set()"
