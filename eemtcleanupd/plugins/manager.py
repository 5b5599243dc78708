"""Plugins of one configuration: call their hooks one by one, with time limits, and catch their errors."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, ClassVar, get_args

import pluggy
from pydantic import BaseModel, SecretStr

from eemtcleanupd.config import Config
from eemtcleanupd.config.plugin_settings import NotifierSettings, Occasions, PluginSettings
from eemtcleanupd.config.schema import BackupConfig
from eemtcleanupd.errors import AuditError, ConfigError
from eemtcleanupd.events import AuditEntry, Occasion
from eemtcleanupd.formatting import printable
from eemtcleanupd.hookspecs import NOTIFY_COVERS, PROJECT, Hooks
from eemtcleanupd.model import ArtifactPath, Job
from eemtcleanupd.plugins.discovery import BLOCKS, FoundPlugin, describe_exception, discover

_BEFORE_STAGE_SECONDS = 3600.0


class _Unfiltered(NotifierSettings):
    """Settings of a plugin without notifier settings: it receives all events, from memory."""

    outlives_restarts: ClassVar[bool] = False
    on: Occasions = get_args(Occasion)


class Plugins:
    """The plugins of one configuration; a class that was in use ``before`` keeps its instance.

    Raises:
        ConfigError: a plugin cannot be loaded, or does not support its settings.
    """

    def __init__(self, config: Config, before: Plugins | None = None, *, veto_seconds: float = 10.0) -> None:
        self._config = config
        self._veto_seconds = veto_seconds
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(Hooks)
        self._settings: dict[str, Any] = {}
        self._targets: dict[str, Any] = {}
        self._hanging_vetoes: dict[str, threading.Thread] = {}
        for plugin in discover([("plugins", name) for name in config.plugins], config.blocked_plugins):
            name, settings = plugin.name, self._settings_of(plugin)
            if isinstance(settings, PluginSettings | BackupConfig) and not settings.enabled:
                continue
            if plugin.model is not None and settings is None:
                continue  # the block is missing, and its keys have no defaults
            self._settings[name] = settings
            self._targets[name] = plugin.target
            self.manager.register(self._instance(plugin, before), name)
            has_digest = isinstance(settings, NotifierSettings) and settings.digest
            if has_digest and self.hook_for(name, "digest") is None:
                raise ConfigError(f"notifications.{name}.digest: {name} cannot send digests. Remove the key.")
        if config.backup.enabled and "backup" not in self._targets:
            raise ConfigError(
                "backup.enabled is true, but blocked_plugins contains backup. Change one of the two keys."
            )

    def _settings_of(self, plugin: FoundPlugin) -> Any:
        if plugin.name in BLOCKS:
            return getattr(self._config, BLOCKS[plugin.name])
        settings = getattr(self._config.notifications, plugin.name, None)
        if settings is None and plugin.origin == "plugins" and plugin.model is not None:
            required = [key for key, field in plugin.model.model_fields.items() if field.is_required()]
            raise ConfigError(
                f"notifications.{plugin.name} is missing. Required keys: {', '.join(required)}."
            )
        return settings

    def _instance(self, plugin: FoundPlugin, before: Plugins | None) -> Any:
        if not inspect.isclass(plugin.target):
            return plugin.target
        if before is not None and before._targets.get(plugin.name) is plugin.target:  # noqa: SLF001
            return before.manager.get_plugin(plugin.name)
        return plugin.target()

    @property
    def names(self) -> list[str]:
        """Names of all plugins in use."""
        return list(self._targets)

    def subset(self, names: Sequence[str]) -> Plugins:
        """Return a copy that calls only these plugins."""
        part = copy.copy(self)
        part._targets = {name: self._targets[name] for name in names}  # noqa: SLF001
        return part

    def plugin(self, name: str) -> Any:
        """Return a plugin, None if it is not in use."""
        return self.manager.get_plugin(name)

    def settings(self, name: str) -> NotifierSettings:
        """Return the settings for deliveries to a notifier."""
        settings = self._settings.get(name)
        return settings if isinstance(settings, NotifierSettings) else _Unfiltered()

    def hook_for(self, name: str, hook: str) -> Callable[[object], object] | None:
        """Return a function that calls a notifier's hook with an event, None if it has no such hook."""
        call = dict(self._implementations(hook)).get(name)
        if call is None and hook in NOTIFY_COVERS:
            call = dict(self._implementations("notify")).get(name)
        return None if call is None else lambda event: call(event=event)

    def redact(self, name: str, text: str) -> str:
        """Return text on one line, without any secret of the plugin's settings."""
        for secret in _secrets(self._settings.get(name)):
            text = text.replace(secret, "********")
        return printable(text)

    def _implementations(self, hook: str) -> list[tuple[str, Callable[..., Any]]]:
        """Return each plugin's implementation, for separate calls: an exception does not stop the others."""
        calls: list[tuple[str, Callable[..., Any]]] = []
        for impl in getattr(self.manager.hook, hook).get_hookimpls():
            if impl.plugin_name in self._targets:
                settings = {"settings": self._settings.get(impl.plugin_name)}
                calls.append((impl.plugin_name, partial(_call, impl.function, impl.argnames, settings)))
        return calls

    # -- hooks of runs -----------------------------------------------------------------------------

    def veto(self, job: Job) -> str | None:
        """Return why a plugin keeps this job, or None if none does; a plugin that fails keeps it."""
        for name, veto in self._implementations("veto_cleanup"):
            hanging = self._hanging_vetoes.get(name)
            if hanging is not None and hanging.is_alive():
                return f"{name}: still no answer about another job"
            thread, result = _call_in_thread(partial(veto, job=job), f"veto ({name})", self._veto_seconds)
            if result is None:
                self._hanging_vetoes[name] = thread
                return f"{name}: no answer within {self._veto_seconds:g} seconds"
            value, error = result
            if error is not None:
                return f"{name}: the plugin failed ({self.redact(name, describe_exception(error))})"
            if value is not None:
                return f"{name}: {self.redact(name, str(value)) or 'no reason given'}"
        return None

    def before_stage(self, job: Job, artifacts: Sequence[ArtifactPath]) -> str | None:
        """Call every plugin before a job's artifacts are deleted; return why a plugin forbids it, or None."""
        for name, prepare in self._implementations("before_stage"):
            # No limit for backups: otherwise a job whose copy takes more than an hour would never be cleaned.
            limit = None if name == "backup" else _BEFORE_STAGE_SECONDS
            call = partial(prepare, job=job, artifacts=tuple(artifacts))
            _, result = _call_in_thread(call, f"before_stage ({name})", limit)
            if result is None:
                return f"{name}: not finished within {_BEFORE_STAGE_SECONDS:g} seconds"
            if result[1] is not None:
                return f"{name}: {self.redact(name, describe_exception(result[1]))}"
        return None

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        """Record planned or completed actions.

        Raises:
            AuditError: the record failed; then no further action is allowed.
        """
        for name, write in self._implementations("audit"):
            try:
                write(entries=entries)
            except AuditError:
                raise
            except Exception as error:
                raise AuditError(
                    f"The plugin {name} cannot record actions ({describe_exception(error)})."
                ) from error


def _call(
    function: Callable[..., Any], names: Sequence[str], settings: Mapping[str, Any], **arguments: Any
) -> Any:
    values = {**settings, **arguments}
    return function(**{name: values[name] for name in names})


def _call_in_thread(
    function: Callable[[], object], name: str, seconds: float | None
) -> tuple[threading.Thread, tuple[object, Exception | None] | None]:
    """Call a function that can hang; return its thread, and its value and exception (None on timeout)."""
    results: list[tuple[object, Exception | None]] = []

    def run() -> None:
        try:
            results.append((function(), None))
        except Exception as error:
            results.append((None, error))

    # With the caller's context, so that a hook finds the stop flag of its run.
    thread = threading.Thread(target=copy_context().run, args=(run,), name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    return thread, results[0] if results else None


def _secrets(settings: Any) -> list[str]:
    """Return all secrets in a plugin's settings, the longest first."""
    if not isinstance(settings, BaseModel):
        return []
    secrets: set[str] = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, SecretStr) and item.get_secret_value():
                secret = item.get_secret_value()
                secrets.add(secret)
                # If an entire URL is secret, a library can print only its path.
                if "://" in secret and (path := secret.partition("://")[2].partition("/")[2]):
                    secrets.add(path)
    return sorted(secrets, key=len, reverse=True)
