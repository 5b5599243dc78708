"""Which value counts, where it came from, paths, secrets, and the words of errors."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings, strategies as st

from eemtcleanupd.config import Config, Loaded, find_file, loading
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.plugins import load, schema
from tests.config.conftest import LoadText, RefuseText

FIELDS = schema().fields

DOCUMENT = Path(__file__).parents[1] / "data" / "cleanup_config_document.yaml"
SECRET = "https://hooks.slack.com/services/T0/B0/verysecret"


def settings_of(loaded: Loaded) -> dict[str, tuple[object, str]]:
    return {setting.key: (setting.value, setting.origin) for setting in loaded.settings()}


def test_the_documents_file_loads_as_it_stands() -> None:
    loaded = load(DOCUMENT, environ={}, cwd=Path("/elsewhere"))
    config = loaded.config
    assert loaded.warnings == ()
    assert (config.retention.successful_jobs.hours, config.retention.failed_jobs.hours) == (168, 12)
    assert config.retention.failed_jobs.keep_error_logs
    assert config.schedule.enabled
    assert config.paths.results == DOCUMENT.parent / "results"
    assert config.notifications.email.recipients == ("admin@example.com",)
    assert settings_of(loaded)["performance.max_workers"] == (4, f"{DOCUMENT}:28")


def test_the_later_source_wins_and_is_named(load_text: LoadText, tmp_path: Path) -> None:
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


def test_all_keys_are_told_but_the_older_spelling() -> None:
    found = settings_of(load(None, environ={}, cwd=Path("/")))
    assert set(found) == set(FIELDS) - {"retention.successful_jobs.days"}


def test_days_are_an_older_spelling_of_hours(load_text: LoadText, tmp_path: Path) -> None:
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
    assert message.startswith("FILE:1:37: retention.successful_jobs.days: found")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "retention:\n  sucessful_jobs:\n    hours: 5\n",
            "FILE:2:3: retention.sucessful_jobs: unknown key; did you mean successful_jobs? Known here: succ",
        ),
        (
            "hours: 5\n",
            "FILE:1:1: hours: unknown key; did you mean retention.successful_jobs.hours or "
            "retention.failed_jobs.hours? Known here: " + ", ".join(Config.model_fields),
        ),
        (
            "notifications:\n  teams: {enabled: true}\n",
            "FILE:2:3: notifications.teams: unknown key; did you mean email? Known here: email, slack,",
        ),
        (
            "retention:\n  failed_jobs:\n    hours: twelve\n",
            "FILE:3:12: retention.failed_jobs.hours: found 'twelve', allowed is a number",
        ),
        ("paths: ./data\n", "FILE:1:8: paths: found text, allowed is a block of keys: database, uploads, "),
        (
            "retention:\n  overrides:\n    - {workflow_type: a, failed_hours: -2}\n",
            "FILE:3:40: retention.overrides[0].failed_hours: found -2, allowed is a number of at least 0",
        ),
    ],
)
def test_an_error_names_place_key_what_was_found_and_what_is_allowed(
    refuse_text: RefuseText, text: str, message: str
) -> None:
    assert refuse_text(text).startswith(message)


def test_every_problem_is_told_at_once(refuse_text: RefuseText) -> None:
    message = refuse_text(
        "dry_run: 1\nretention:\n  failed_jobs: {hours: x}\nnonsense: 1\n",
        environ={"EEMT_CLEANUP_BATCH_SIZE": "0"},
    )
    lines = message.splitlines()
    assert lines[0] == "the configuration has 4 problems:"
    places = {line.strip().split(": ")[0] for line in lines[1:]}
    assert places == {"FILE:1:10", "FILE:3:24", "FILE:4:1", "EEMT_CLEANUP_BATCH_SIZE"}


def test_a_long_list_of_problems_is_cut(refuse_text: RefuseText) -> None:
    lines = refuse_text("".join(f"key{n}: 1\n" for n in range(70))).splitlines()
    assert len(lines) == 52
    assert lines[-1].strip() == "and 20 more"


def test_a_wrong_value_in_the_file_is_told_though_a_variable_overrides_it(refuse_text: RefuseText) -> None:
    message = refuse_text(
        "retention: {failed_jobs: {hours: x}}", environ={"EEMT_FAILED_RETENTION_HOURS": "3"}
    )
    assert message.startswith("FILE:1:34: retention.failed_jobs.hours: found 'x'")


def test_a_wrong_option_is_told_by_its_name() -> None:
    options = {"performance.max_workers": (0, "--workers")}
    with pytest.raises(
        ConfigError, match=r"^--workers: performance\.max_workers: found 0, allowed is .* at least 1"
    ):
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
def test_a_path_is_absolute_from_where_its_author_stood(
    load_text: LoadText, tmp_path: Path, row: tuple[str, dict[str, str], dict[str, Any], str, str]
) -> None:
    text, environ, options, key, expected = row
    found = settings_of(load_text(text, environ=environ, options=options))
    assert found[key][0] == str(tmp_path / expected)


def test_without_a_file_default_paths_are_in_the_working_directory() -> None:
    assert load(None, environ={}, cwd=Path("/here")).config.paths.logs == Path("/here/logs")


def test_the_file_is_found_where_it_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_file_that_is_named_and_missing_is_an_error(
    tmp_path: Path, explicit: Path | None, environ: dict[str, str], source: str
) -> None:
    with pytest.raises(ConfigError, match=f"there is no file {tmp_path}/no.yaml, which {source} names"):
        find_file(explicit, environ, tmp_path)


def test_a_file_that_cannot_be_looked_at_is_not_passed_over_for_other_rules(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert find_file(None, {}, tmp_path / "loop") == tmp_path / "loop" / "cleanup_config.yaml"


def test_a_dangling_link_is_not_passed_over_for_other_rules(tmp_path: Path) -> None:
    (tmp_path / "cleanup_config.yaml").symlink_to("gone")
    file = find_file(None, {}, tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        load(file, environ={}, cwd=tmp_path)


class TestSecrets:
    """A secret is found wherever it is, and shown nowhere."""

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

    def test_it_is_read(self, loaded: Loaded, tmp_path: Path) -> None:
        url = loaded.config.notifications.slack.webhook_url
        assert url is not None
        assert url.get_secret_value() == SECRET
        assert loaded.origins["notifications.slack.webhook_url"] == f"{tmp_path}/conf/cleanup_config.yaml:4"

    def test_it_is_never_shown(self, loaded: Loaded) -> None:
        assert "verysecret" not in f"{loaded!r} {loaded.config} {list(loaded.settings())}"
        assert settings_of(loaded)["notifications.slack.webhook_url"][0] == "********"

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("webhook_url: '${HOOK}'", "webhook_url: the variable HOOK, which it names, is not set"),
            ("webhook_url_file: absent", "absent cannot be read: No such file"),
            ("webhook_url_file: empty", "empty is empty"),
            ("webhook_url_file: binary", "binary is not UTF-8"),
            (f"webhook_url_file: x, webhook_url: '{SECRET}'", "keep one of the two"),
        ],
    )
    def test_one_that_cannot_be_had_is_an_error(
        self, refuse_text: RefuseText, tmp_path: Path, line: str, words: str
    ) -> None:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "empty").touch()
        (tmp_path / "conf" / "binary").write_bytes(b"\xff")
        message = refuse_text(f"notifications: {{slack: {{enabled: true, {line}}}}}")
        assert message.startswith("FILE:1:")
        assert words in message

    def test_one_of_a_disabled_block_is_not_looked_for(self, load_text: LoadText) -> None:
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
    def test_no_error_shows_one(self, refuse_text: RefuseText, text: str) -> None:
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


def test_what_is_loaded_cannot_be_changed(load_text: LoadText) -> None:
    loaded = load_text()
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.file = None  # type: ignore[misc]  # what is tested
    with pytest.raises(ValueError, match="frozen"):
        loaded.config.dry_run = True  # type: ignore[misc]  # what is tested
    with pytest.raises(TypeError):
        loaded.origins["dry_run"] = "me"  # type: ignore[index]  # what is tested


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


def test_loading_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
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
