"""Whatever a plugin raises, returns or is, it ends no run, no daemon and no other plugin."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.delivery import DeliveryResult, Dispatcher
from eemtcleanupd.errors import AuditError, ConfigError
from eemtcleanupd.events import ConfigRejected, RunReport
from eemtcleanupd.plugins import Plugins, load
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli
from tests.daemon.conftest import HEAD as PATHS, DaemonHarness
from tests.notifiers.samples import FINISHED

HEAD = "import os, sys\nfrom eemtcleanupd.hookspecs import hookimpl, NotifierSettings, RetryLater\n"
HOSTILE = """
class Text(str):
    def _fail(self, *args, **kwargs): raise SystemExit(0)
    replace = split = strip = join = encode = translate = __len__ = __getitem__ = __str__ = __repr__ = _fail
    __format__ = __bool__ = __iter__ = __contains__ = __eq__ = _fail
    __hash__ = str.__hash__

class Mute(Exception):
    def __str__(self): raise SystemExit(0)
    __repr__ = __str__

class Odd(OSError):
    @property
    def strerror(self): raise KeyboardInterrupt
    def __str__(self): raise GeneratorExit

class Disguised(Exception):
    @property
    def __class__(self): raise SystemExit(0)

class Object:
    def __str__(self): raise SystemExit(0)
    def __bool__(self): raise KeyboardInterrupt
    __repr__ = __len__ = __eq__ = __str__
    __hash__ = object.__hash__
"""
RAISED = {
    "SystemExit": "sys.exit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "BaseException": "raise BaseException",
    "an exception without a text": "raise Mute",
    "an error of the system without a text": "raise Odd(5, 'x')",
    "an exception without a class": "raise Disguised",
    "an argument that is no text": "raise ValueError(Object())",
    "a text that is none": "raise ValueError(Text('x'))",
    "out of memory": "raise MemoryError",
    "recursion": "f = lambda: f()\n    f()",
}
RETURNED = {
    "a text that is none": "Text('why')",
    "an object without a text": "Object()",
    "a generator": "(sys.exit(0) for _ in 'x')",
    "a huge text": "'x' * 50_000_000",
    "an exception": "Mute()",
    "a class": "Object",
}
_numbers = itertools.count()
Configured = Callable[[str], JobStore]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Configured]:
    """A store with an expired job, whose configuration names a plugin with this text."""
    with ExitStack() as stack:

        def make(text: str) -> JobStore:
            name = f"mine_{next(_numbers)}"  # Python keeps modules by name
            store = JobStore(tmp_path / name)
            store.job("a")
            (store.path / f"{name}.py").write_text(HEAD + HOSTILE + text)
            safety = "safety: {min_idle_minutes: 0}"
            (store.path / "cleanup_config.yaml").write_text(f"{PATHS}{safety}\nplugins: [{name}]\n")
            stack.callback(sys.modules.pop, name, None)
            return store

        yield make


def plugins_of(store: JobStore) -> Plugins:
    return Plugins(load(store.path / "cleanup_config.yaml", environ={}, cwd=store.path).config)


def run(store: JobStore, hooks: Plugins) -> RunReport:
    request = RunRequest(user="tester")
    return clean(store.config(), request, emit=lambda _: None, clock=lambda: store.now, hooks=hooks)


HOOK = "\n@hookimpl\ndef run_finished(event):\n    pass\n"
AT_LOAD = {
    "at import": "{raised}\n",
    "in register_settings": "\n@hookimpl\ndef register_settings():\n    {raised}\n",
    "in a constructor": "\nclass Plugin:\n    def __init__(self):\n        {raised}\n",
    "in a validator": """
from pydantic import field_validator
class Settings(NotifierSettings):
    key: int = 5
    @field_validator("key")
    @classmethod
    def check(cls, value):
        {raised}
    model_config = dict(validate_default=True)
@hookimpl
def register_settings():
    return Settings
""",
    "in a default": """
from pydantic import Field
def default():
    {raised}
class Settings(NotifierSettings):
    key: int = Field(default_factory=default)
@hookimpl
def register_settings():
    return Settings
""",
}


@pytest.mark.parametrize("raised", ["SystemExit", "KeyboardInterrupt", "an exception without a text"])
@pytest.mark.parametrize("place", AT_LOAD)
def test_a_plugin_that_cannot_be_loaded_is_an_error_of_the_configuration(
    store: Configured, place: str, raised: str
) -> None:
    text = AT_LOAD[place].format(raised=RAISED[raised])
    built = store(HOOK + text)
    if place == "in a constructor":
        file = built.path / "cleanup_config.yaml"
        file.write_text(file.read_text().replace("]\n", ":Plugin]\n"))
    with pytest.raises(ConfigError):
        plugins_of(built)


@pytest.mark.parametrize("raised", RAISED)
def test_an_import_can_raise_anything(store: Configured, raised: str) -> None:
    with pytest.raises(ConfigError):
        plugins_of(store(f"{HOOK}if True:\n    {RAISED[raised]}\n"))


def test_a_command_with_a_plugin_that_exits_ends_with_2(store: Configured, run_cli: RunCli) -> None:
    built = store(HOOK + "sys.exit(0)\n")
    for command in (["clean", "--force"], ["check"], ["clean", "--json"]):
        done = run_cli(*command, cwd=built.path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 2
    assert built.results("a").exists()


def test_a_daemon_rejects_a_plugin_that_exits_at_import(tmp_path: Path) -> None:
    with ExitStack() as stack:
        daemon = DaemonHarness(JobStore(tmp_path / "store"), stack)
        daemon.start()
        (daemon.store.path / "exits_at_import.py").write_text("import sys\nsys.exit(0)\n")
        daemon.write("plugins: [exits_at_import]")
        daemon.reload()
        assert len(daemon.events_of(ConfigRejected)) == 1
        assert daemon.step()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_of_the_operator_ends_a_command_while_a_plugin_is_imported(
    store: Configured, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    built = store(f"open({str(fifo)!r}, 'w').close()\nimport threading\nthreading.Event().wait()\n{HOOK}")
    command = [sys.executable, "-m", "eemtcleanupd", "clean", "--force"]
    with subprocess.Popen(command, cwd=built.path, stderr=subprocess.DEVNULL) as process:
        fifo.read_bytes()  # returns as soon as the import has come to its first line
        process.send_signal(number)
        assert process.wait(60) == code
    assert built.results("a").exists()


# -- in a run ------------------------------------------------------------------------------------------


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("raised", RAISED)
def test_a_veto_can_raise_anything_and_keeps_the_job(store: Configured, raised: str) -> None:
    built = store(f"\n@hookimpl\ndef veto_cleanup(job):\n    {RAISED[raised]}\n")
    report = run(built, plugins_of(built))
    assert (report.successful.jobs, report.errors) == (0, 0)
    assert built.results("a").exists()


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("returned", RETURNED)
def test_a_veto_can_return_anything_and_keeps_the_job(store: Configured, returned: str) -> None:
    built = store(f"\n@hookimpl\ndef veto_cleanup(job):\n    return {RETURNED[returned]}\n")
    report = run(built, plugins_of(built))
    assert (report.successful.jobs, report.errors) == (0, 0)
    assert built.results("a").exists()
    assert (built.path / "logs" / "cleanup_audit.jsonl").stat().st_size < 1_000_000


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("raised", RAISED)
def test_before_stage_can_raise_anything_and_keeps_the_job(store: Configured, raised: str) -> None:
    built = store(f"\n@hookimpl\ndef before_stage(job):\n    {RAISED[raised]}\n")
    assert run(built, plugins_of(built)).errors == 1
    assert built.results("a").exists()
    assert built.cleaned() == set()


@pytest.mark.parametrize("raised", RAISED)
def test_an_audit_that_raises_anything_ends_the_run_before_a_file_moves(
    store: Configured, raised: str
) -> None:
    built = store(f"\n@hookimpl\ndef audit(entries):\n    {RAISED[raised]}\n")
    with pytest.raises(AuditError):
        run(built, plugins_of(built))
    assert built.results("a").exists()


def test_an_audit_that_exits_after_the_deletion_loses_no_record(store: Configured) -> None:
    built = store(
        "\n@hookimpl\ndef audit(entries):\n    if entries[0].action == 'cleaned':\n        sys.exit(0)\n"
    )
    with pytest.raises(AuditError):
        run(built, plugins_of(built))
    assert not built.results("a").exists()
    built.run()  # without the plugin
    assert built.cleaned() == {"a"}


# -- notifications -------------------------------------------------------------------------------------


def delivered(store: JobStore, *, single_attempt: bool = True) -> DeliveryResult:
    """Send an event to all plugins of a store; return the result of the hostile one."""
    dispatcher = Dispatcher(None, lambda: store.now, single_attempt=single_attempt)
    dispatcher.configure(plugins_of(store))
    try:
        dispatcher.publish(FINISHED)
        assert dispatcher.drain(20)
        results = dispatcher.last_results()
    finally:
        dispatcher.close()
    assert results.pop("prometheus").error is None  # another plugin works as ever
    (result,) = results.values()
    return result


@pytest.mark.parametrize("raised", [*RAISED, "a retry after no time"])
def test_a_notifier_can_raise_anything(store: Configured, raised: str) -> None:
    text = RAISED.get(raised, "raise RetryLater(Object(), after_seconds=Object())")
    result = delivered(store(f"\n@hookimpl\ndef run_finished(event):\n    {text}\n"))
    assert result.error is not None


@pytest.mark.parametrize("returned", RETURNED)
def test_a_notifier_can_return_anything(store: Configured, returned: str) -> None:
    built = store(f"\n@hookimpl\ndef run_finished(event):\n    return {RETURNED[returned]}\n")
    assert len(delivered(built).message) < 1_000_000


@pytest.mark.parametrize("seconds", ["1e300", "float('nan')", "float('inf')", "-5", "'soon'", "10**400"])
def test_a_wait_of_any_length_is_limited(store: Configured, seconds: str) -> None:
    built = store(f"\n@hookimpl\ndef run_finished(event):\n    raise RetryLater('x', {seconds})\n")
    result = delivered(built, single_attempt=False)
    assert result.retry
    assert 0 <= (result.after_seconds or 0) <= 3600


def test_a_plugin_that_gives_a_common_key_another_type_disturbs_no_other(store: Configured) -> None:
    built = store(
        "\nclass Settings(NotifierSettings):\n    on: int = 5\n    timeout_seconds: str = 'x'\n"
        "@hookimpl\ndef register_settings():\n    return Settings\n" + HOOK
    )
    with pytest.raises(ConfigError):
        plugins_of(built)
