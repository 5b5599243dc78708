"""Plugins are discovered, get their settings, and harm neither a run nor each other."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.events import Event, JobFailed, JobSkipped, RunReport
from eemtcleanupd.model import Job
from eemtcleanupd.plugins import Plugins
from tests.cleanup.conftest import JobStore
from tests.notifiers.samples import FINISHED
from tests.plugins.conftest import MakePlugins, Module

JOB = Job("a", "completed", "sol")


@dataclass
class RunResult:
    report: RunReport
    events: list[Event]

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def run(store: JobStore, guards: Plugins, *, dry_run: bool = False) -> RunResult:
    events: list[Event] = []
    report = clean(
        store.config(),
        RunRequest(user="tester", dry_run=dry_run),
        emit=events.append,
        clock=lambda: store.now,
        hooks=guards,
    )
    return RunResult(report, events)


def call(plugins: Plugins, name: str) -> object:
    hook = plugins.hook_for(name, "run_finished")
    assert hook is not None
    return hook(FINISHED)


# -- discovery -----------------------------------------------------------------------------------------


def test_a_module_named_in_the_configuration_is_a_plugin(module: Module, plugins: MakePlugins) -> None:
    name = module("mine", "@hookimpl\ndef run_finished(event):\n    return event.report.run_id\n")
    assert call(plugins(f"plugins: [{name}]"), "mine") == FINISHED.report.run_id


def test_a_class_keeps_its_instance_over_a_reload(module: Module, plugins: MakePlugins) -> None:
    text = (
        "class Mine:\n    made = 0\n    def __init__(self):\n        self.calls = 0\n"
        "    @hookimpl\n    def run_finished(self, event):\n"
        "        self.calls += 1\n        return str(self.calls)\n"
    )
    name = module("counting", text)
    first = plugins(f"plugins: ['{name}:Mine']")
    assert call(first, "counting") == "1"
    second = Plugins(first._config, before=first)
    assert call(second, "counting") == "2"


def test_a_hook_can_receive_the_settings_of_its_block(module: Module, plugins: MakePlugins) -> None:
    name = module(
        "polite",
        "from pathlib import Path\nfrom pydantic import BaseModel\n"
        "class S(BaseModel):\n    greeting: str\n    folder: Path = Path('x')\n"
        "@hookimpl\ndef register_settings():\n    return S\n"
        "@hookimpl\ndef run_finished(event, settings):\n"
        "    return f'{settings.greeting} {settings.folder.is_absolute()}'\n",
    )
    config = f"plugins: [{name}]\nnotifications: {{polite: {{greeting: hello, only_if_cleaned: true}}}}"
    loaded = plugins(config)
    assert call(loaded, "polite") == "hello True"
    assert loaded.settings("polite").only_if_cleaned


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ("{polite: {greting: x}}", "notifications.polite.greting: .*greeting"),
        ("{polite: {greeting: 5}}", "notifications.polite.greeting: .*5"),
        ("{polite: {}}", "notifications.polite.greeting"),
        ("{polight: {}}", "notifications.polight: .*polite"),
        ("{}", "notifications.polite .*greeting"),
    ],
)
def test_an_invalid_block_is_a_configuration_error(
    module: Module, plugins: MakePlugins, block: str, key: str
) -> None:
    name = module(
        "polite",
        "from pydantic import BaseModel\nclass S(BaseModel):\n    greeting: str\n"
        "@hookimpl\ndef register_settings():\n    return S\n"
        "@hookimpl\ndef run_finished(event):\n    pass\n",
    )
    with pytest.raises(ConfigError, match=key):
        plugins(f"plugins: [{name}]\nnotifications: {block}")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("import no_such_thing_at_all", "ModuleNotFoundError"),
        ("x = 1", "@hookimpl"),
        ("@hookimpl\ndef run_finnished(event):\n    pass", "run_finnished"),
        ("@hookimpl\ndef run_finished(evnt):\n    pass", "evnt"),
        ("@hookimpl\ndef register_settings():\n    return 5", "register_settings"),
        ("@hookimpl(wrapper=True)\ndef run_finished(event):\n    return (yield)", "wrapper"),
        ("@hookimpl\ndef register_settings():\n    raise OSError('no')", "OSError: no"),
    ],
)
def test_an_invalid_plugin_is_a_configuration_error(
    module: Module, plugins: MakePlugins, text: str, cause: str
) -> None:
    with pytest.raises(ConfigError, match=cause):
        plugins(f"plugins: [{module('wrong', text)}]")


def test_a_plugin_with_the_name_of_another_is_refused(module: Module, plugins: MakePlugins) -> None:
    name = module("slack", "@hookimpl\ndef run_finished(event):\n    pass\n")
    with pytest.raises(ConfigError, match=r":1:11: plugins\[0\]: .*slack"):
        plugins(f"plugins: [{name}]")


def test_a_blocked_plugin_is_unused_and_its_block_is_unknown(plugins: MakePlugins) -> None:
    assert "prometheus" not in plugins("blocked_plugins: [prometheus]").names
    with pytest.raises(ConfigError, match=r"notifications.slack:"):
        plugins("blocked_plugins: [slack]\nnotifications: {slack: {enabled: false}}")


def test_a_digest_is_refused_if_the_notifier_cannot_send_one(plugins: MakePlugins) -> None:
    text = "notifications: {ping: {enabled: true, url: 'http://localhost/', digest: '07:00'}}"
    with pytest.raises(ConfigError, match=r"notifications.ping.digest:"):
        plugins(text)


# -- veto --------------------------------------------------------------------------------------------

VETO = "@hookimpl\ndef veto_cleanup(job):\n    "


def test_a_veto_keeps_the_job_and_all_reports_have_its_reason(
    module: Module, plugins: MakePlugins, store: JobStore
) -> None:
    store.job("a")
    store.job("b")
    name = module("keeper", VETO + "return 'for the thesis' if job.id == 'a' else None\n")
    guards = plugins(f"plugins: [{name}]\npaths: {{logs: {store.path}/logs}}")
    planned = run(store, guards, dry_run=True)
    done = run(store, guards)
    for result in (planned, done):
        skipped = result.of(JobSkipped)
        assert [(s.job.id, s.reason) for s in skipped if isinstance(s, JobSkipped)] == [
            ("a", "keeper: for the thesis")
        ]
        assert [note.message for note in result.report.vetoed] == ["keeper: for the thesis"]
    assert store.cleaned() == {"b"}
    audit = (store.path / "logs" / "cleanup_audit.jsonl").read_text()
    assert '"action": "vetoed"' in audit
    assert "keeper: for the thesis" in audit


def test_an_upload_that_a_vetoed_job_shares_stays(
    module: Module, plugins: MakePlugins, store: JobStore
) -> None:
    upload = store.upload("dem.tif")
    store.job("a", dem="dem.tif")
    store.job("b", dem="dem.tif")
    guards = plugins(f"plugins: [{module('keeper', VETO + 'return job.id == chr(97) and chr(120) or None')}]")
    run(store, guards)
    assert upload.exists()
    assert store.cleaned() == {"b"}


def test_a_veto_that_raises_keeps_the_job(module: Module, plugins: MakePlugins) -> None:
    guards = plugins(f"plugins: [{module('broken', VETO + 'raise KeyError(1)')}]")
    reason = guards.veto(JOB)
    assert reason is not None
    assert reason.startswith("broken: ")
    assert "KeyError: 1" in reason


def test_a_veto_that_hangs_keeps_all_jobs_and_is_not_called_again(
    module: Module, plugins: MakePlugins
) -> None:
    name = module("slow", f"import threading\n{VETO}threading.Event().wait(600)")
    guards = plugins(f"plugins: [{name}]", veto_seconds=0.05)
    assert "0.05 seconds" in (guards.veto(JOB) or "")
    before = set(threading.enumerate())
    assert (guards.veto(JOB) or "").startswith("slow: ")
    assert set(threading.enumerate()) <= before


def test_a_veto_receives_all_fields_of_a_job(module: Module, plugins: MakePlugins) -> None:
    fields = ("id", "status", "workflow_type", "completed_at", "dem_filename", "parameters")
    name = module("curious", f"{VETO}return ' '.join(str(getattr(job, name)) for name in {fields})\n")
    assert plugins(f"plugins: [{name}]").veto(JOB) == "curious: a completed sol None None None"


# -- before_stage ------------------------------------------------------------------------------------


def test_before_stage_receives_the_paths_of_existing_files(
    module: Module, plugins: MakePlugins, store: JobStore
) -> None:
    store.job("a")
    seen = store.path / "seen"
    text = (
        "@hookimpl\ndef before_stage(job, artifacts):\n"
        "    from pathlib import Path\n"
        "    text = ''.join(f'{job.id} {a.path} {a.path.exists()}' for a in artifacts)\n"
        f"    Path({str(seen)!r}).write_text(text)\n"
    )
    paths = f"{{results: {store.path}/results, logs: {store.path}/logs}}"
    guards = plugins(f"plugins: [{module('looker', text)}]\npaths: {paths}")
    run(store, guards)
    assert seen.read_text() == f"a {store.path}/results/a True"
    assert store.cleaned() == {"a"}


def test_a_job_whose_before_stage_fails_is_kept_as_an_error(
    module: Module, plugins: MakePlugins, store: JobStore
) -> None:
    store.job("a")
    store.job("b")
    text = "@hookimpl\ndef before_stage(job, artifacts):\n    assert job.id != 'a', 'no room for a copy'\n"
    done = run(store, plugins(f"plugins: [{module('copier', text)}]"))
    assert store.cleaned() == {"b"}
    assert store.results("a").exists()
    (failed,) = done.of(JobFailed)
    assert isinstance(failed, JobFailed)
    assert failed.error == "copier: AssertionError: no room for a copy"
    assert done.report.errors == 1
    assert done.report.failures[0].message == failed.error


def test_a_job_that_another_plugin_forbids_is_not_backed_up_by_each_run(
    module: Module, plugins: MakePlugins, store: JobStore
) -> None:
    store.job("a")
    backup, answer = store.path / "backup", store.path / "offline"
    answer.touch()
    text = (
        "@hookimpl\ndef before_stage(job):\n"
        "    from pathlib import Path\n"
        f"    assert not Path({str(answer)!r}).exists(), 'the tape is offline'\n"
    )
    config = f"plugins: [{module('tape', text)}]\nbackup: {{enabled: true, path: {backup}}}"
    assert run(store, plugins(config)).report.errors == 1
    assert not backup.exists()
    answer.unlink()
    assert run(store, plugins(config)).report.successful.jobs == 1
    assert len(list(backup.iterdir())) == 1


# -- secrets -----------------------------------------------------------------------------------------


def test_text_of_a_plugin_contains_no_secret(module: Module, plugins: MakePlugins) -> None:
    text = (
        "from pydantic import SecretStr\n"
        "class S(NotifierSettings):\n    url: SecretStr\n    more: tuple[SecretStr, ...] = ()\n"
        "@hookimpl\ndef register_settings():\n    return S\n"
        "@hookimpl\ndef run_finished(event):\n    pass\n"
    )
    loaded = plugins(
        f"plugins: [{module('talker', text)}]\n"
        "notifications: {talker: {url: 'https://host/path/hidden', more: []}}"
    )
    assert loaded.redact("talker", "HTTPSConnectionPool(host='host'): /path/hidden failed") == (
        "HTTPSConnectionPool(host='host'): /******** failed"
    )
