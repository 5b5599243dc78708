"""The plugins of one configuration: who is told, who is asked, and what comes of those that fail or hang."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import pluggy
from pydantic import BaseModel, SecretStr

from eemtcleanupd.config import Config
from eemtcleanupd.config.plugin_settings import NotifierSettings, Occasion, Occasions, PluginSettings
from eemtcleanupd.config.schema import BackupConfig
from eemtcleanupd.errors import AuditError, ConfigError
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.formatting import printable
from eemtcleanupd.hookspecs import NOTIFY_COVERS, PROJECT, ArtifactPath, Hooks
from eemtcleanupd.model import Found, Job
from eemtcleanupd.plugins.discovery import BLOCKS, FoundPlugin, describe_exception, discover

_VETO_SECONDS = 10.0
_BEFORE_STAGE_SECONDS = 3600.0


class _Unfiltered(NotifierSettings):
    """A notifier that is told of everything and only tells how things are now."""

    outlives_restarts: ClassVar[bool] = False
    on: Occasions = get_args(Occasion)


class Plugins:
    """The plugins of one configuration.

    Args:
        config: the configuration.
        before: the plugins of the configuration before; a class that is still in use keeps its instance.

    Raises:
        ConfigError: a plugin cannot be loaded, or does not do what its settings ask for.
    """

    def __init__(self, config: Config, before: Plugins | None = None) -> None:
        self._config = config
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(Hooks)
        self._settings: dict[str, Any] = {}
        self._targets: dict[str, Any] = {}
        self._veto_hangs: dict[str, threading.Thread] = {}
        named = [("plugins", each) for each in config.plugins]
        for found in discover(named, config.blocked_plugins):
            settings = self._settings_of(found)
            if isinstance(settings, PluginSettings | BackupConfig) and not settings.enabled:
                continue
            if found.model is not None and settings is None:
                continue  # it has keys without a default, and no block
            self._settings[found.name] = settings
            self._targets[found.name] = found.target
            self.manager.register(self._instance(found, before), found.name)
            if (
                isinstance(settings, NotifierSettings)
                and settings.digest
                and self.hook_for(found.name, "digest") is None
            ):
                raise ConfigError(f"notifications.{found.name}.digest: it cannot send digests: leave it out")
        if config.backup.enabled and "backup" not in self._targets:
            raise ConfigError("backup.enabled is true, but blocked_plugins leaves backup out: choose one")

    def _settings_of(self, found: FoundPlugin) -> Any:
        if found.name in BLOCKS:
            return getattr(self._config, BLOCKS[found.name])
        settings = getattr(self._config.notifications, found.name, None)
        if settings is None and found.origin == "plugins" and found.model is not None:
            needed = [key for key, field in found.model.model_fields.items() if field.is_required()]
            raise ConfigError(f"notifications.{found.name} is missing; it needs {', '.join(needed)}")
        return settings

    def _instance(self, found: FoundPlugin, before: Plugins | None) -> Any:
        if not inspect.isclass(found.target):
            return found.target
        if before is not None and before._targets.get(found.name) is found.target:  # noqa: SLF001
            return before.manager.get_plugin(found.name)
        return found.target()

    @property
    def names(self) -> list[str]:
        """The names of all plugins that are in use."""
        return list(self._targets)

    def subset(self, names: Sequence[str]) -> Plugins:
        """Return a set of which only these plugins are told."""
        part = copy.copy(self)
        part._targets = {name: self._targets[name] for name in names}  # noqa: SLF001
        return part

    def plugin(self, name: str) -> Any:
        """Return a plugin, None when it is not in use."""
        return self.manager.get_plugin(name)

    def settings(self, name: str) -> NotifierSettings:
        """Return what counts for the deliveries of a notifier."""
        settings = self._settings.get(name)
        return settings if isinstance(settings, NotifierSettings) else _Unfiltered()

    def hook_for(self, name: str, hook: str) -> Callable[[object], object] | None:
        """Return what calls a notifier's hook with an event, None when it has no such hook."""
        found = dict(self._implementations(hook)).get(name)
        if found is None and hook in NOTIFY_COVERS:
            found = dict(self._implementations("notify")).get(name)
        return None if found is None else lambda event: found(event=event)

    def redact(self, name: str, text: str) -> str:
        """Return text without any secret of a plugin's settings, fit for one line."""
        for secret in _secrets(self._settings.get(name)):
            text = text.replace(secret, "********")
        return printable(text)

    def _implementations(self, hook: str) -> list[tuple[str, Callable[..., Any]]]:
        """Return each plugin's implementation, to be called one by one: one that raises stops no other."""
        calls: list[tuple[str, Callable[..., Any]]] = []
        for each in getattr(self.manager.hook, hook).get_hookimpls():
            if each.plugin_name not in self._targets:
                continue
            given: dict[str, Any] = {}
            if "settings" in each.argnames:
                given["settings"] = self._settings.get(each.plugin_name)
            calls.append((each.plugin_name, partial(_call, each.function, tuple(each.argnames), given)))
        return calls

    # -- what a run asks ---------------------------------------------------------------------------

    def veto(self, job: Job) -> str | None:
        """Return why a plugin keeps this job, None when none does; one that fails keeps it."""
        for name, ask in self._implementations("veto_cleanup"):
            hanging = self._veto_hangs.get(name)
            if hanging is not None and hanging.is_alive():
                return f"{name}: it still has not answered about another job"
            thread, answer = _in_thread(partial(ask, job=job), f"veto ({name})", _VETO_SECONDS)
            if answer is None:
                self._veto_hangs[name] = thread
                return f"{name}: it did not answer within {_VETO_SECONDS:g} seconds"
            value, error = answer
            if error is not None:
                return f"{name}: it failed ({self.redact(name, describe_exception(error))})"
            if value is not None:
                return f"{name}: {self.redact(name, str(value)) or 'no reason given'}"
        return None

    def before_stage(self, job: Job, artifacts: Sequence[Found]) -> str | None:
        """Let every plugin do what it must before a job's artifacts go; return why they may not."""
        implementations = self._implementations("before_stage")
        if not implementations:
            return None
        roots: dict[str, Path] = {
            name: getattr(self._config.paths, name) for name in ("results", "uploads", "temp")
        }
        paths = tuple(
            ArtifactPath(each, roots[each.artifact.root] / each.artifact.name) for each in artifacts
        )
        for name, prepare in implementations:
            # A backup takes what it takes: a job whose copy lasts longer than an hour must not stay for ever.
            limit = None if name == "backup" else _BEFORE_STAGE_SECONDS
            _, answer = _in_thread(
                partial(prepare, job=job, artifacts=paths), f"before_stage ({name})", limit
            )
            if answer is None:
                return f"{name}: it was not done within {_BEFORE_STAGE_SECONDS:g} seconds"
            if answer[1] is not None:
                return f"{name}: {self.redact(name, describe_exception(answer[1]))}"
        return None

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        """Write down what is about to be done, or was done.

        Raises:
            AuditError: it cannot be; then nothing more may be done.
        """
        for name, write in self._implementations("audit"):
            try:
                write(entries=entries)
            except AuditError:
                raise
            except Exception as error:
                raise AuditError(
                    f"{name} cannot write down what is done ({describe_exception(error)})"
                ) from error


def _call(function: Callable[..., Any], names: tuple[str, ...], given: Mapping[str, Any], **more: Any) -> Any:
    values = {**given, **more}
    return function(**{name: values[name] for name in names})


def _in_thread(
    work: Callable[[], object], name: str, seconds: float | None
) -> tuple[threading.Thread, tuple[object, Exception | None] | None]:
    """Call something that may hang; the answer is None when it did not come in time."""
    answers: list[tuple[object, Exception | None]] = []

    def run() -> None:
        try:
            answers.append((work(), None))
        except Exception as error:
            answers.append((None, error))

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    return thread, answers[0] if answers else None


def _secrets(settings: Any) -> list[str]:
    """Return all secrets in a plugin's settings, the longest first."""
    if not isinstance(settings, BaseModel):
        return []
    found: set[str] = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, SecretStr) and each.get_secret_value():
                secret = each.get_secret_value()
                found.add(secret)
                # A library may tell only the path of a URL that is secret as a whole.
                if "://" in secret and (path := secret.partition("://")[2].partition("/")[2]):
                    found.add(path)
    return sorted(found, key=len, reverse=True)
