"""Plugins of one configuration: call their hooks one by one, with time limits, and catch their errors."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import pluggy
from pydantic import BaseModel, SecretStr

from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Config
from eemtcleanupd.config.plugin_settings import NotifierSettings, Occasions, PluginSettings
from eemtcleanupd.config.schema import BackupConfig
from eemtcleanupd.errors import AuditError, ConfigError
from eemtcleanupd.events import AuditEntry, Occasion
from eemtcleanupd.formatting import printable
from eemtcleanupd.hookspecs import NOTIFY_COVERS, PROJECT, Hooks
from eemtcleanupd.model import ArtifactPath, Job
from eemtcleanupd.plugins.discovery import BLOCKS, FoundPlugin, discover, guarded
from eemtcleanupd.plugins.guard import call, text_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from eemtcleanupd.notifiers.audit_log import AuditLog
    from eemtcleanupd.store.ledger import Ledger

_BEFORE_STAGE_SECONDS = 3600.0
_AUDIT_LOG = "audit_log"
_AUDIT_SECONDS = 60.0


class _FromMemory(NotifierSettings):
    """Settings of a notifier whose messages are not kept over a restart."""

    outlives_restarts: ClassVar[bool] = False


class _Unfiltered(_FromMemory):
    """Settings of a plugin without notifier settings: it receives all events, from memory."""

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
        self._delivery: dict[str, NotifierSettings] = {}
        self._secrets: dict[str, list[str]] = {}
        self._targets: dict[str, Any] = {}
        self._hanging_vetoes: dict[str, threading.Thread] = {}
        for plugin in discover([("plugins", name) for name in config.plugins], config.blocked_plugins):
            add = partial(self._add, plugin, before)
            if plugin.is_builtin:
                add()
            else:
                guarded(add, f"Cannot start the plugin {printable(plugin.name)}", is_secret=True)
        if config.backup.enabled and "backup" not in self._targets:
            raise ConfigError(
                "backup.enabled is true, but blocked_plugins contains backup. Change one of the two keys."
            )

    def _add(self, plugin: FoundPlugin, before: Plugins | None) -> None:
        """Register a plugin, unless its settings disable it."""
        name, settings = plugin.name, self._settings_of(plugin)
        if isinstance(settings, PluginSettings | BackupConfig) and not settings.enabled:
            return
        if plugin.model is not None and settings is None:
            return  # the block is missing, and its keys have no defaults
        # Everything that calls code of the plugin comes before the first change.
        delivery, secrets = _delivery_settings(settings), _secrets(settings)
        if isinstance(settings, NotifierSettings):
            settings.set_public_url(self._config.api.public_url)
        self.manager.register(self._instance(plugin, before), name)
        self._settings[name] = settings
        self._delivery[name] = delivery
        self._secrets[name] = secrets
        self._targets[name] = plugin.target
        if delivery.digest and self.hook_for(name, "digest") is None:
            raise ConfigError(f"notifications.{name}.digest: {name} cannot send digests. Remove the key.")

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
        return self._delivery.get(name) or _Unfiltered()

    def hook_for(self, name: str, hook: str) -> Callable[..., object] | None:
        """Return a function that calls a notifier's hook with an event, None if it has no such hook.

        Its second argument, ``recipients``, names those that a retry is for; empty means all.
        """
        implementation = dict(self._implementations(hook)).get(name)
        if implementation is None and hook in NOTIFY_COVERS:
            implementation = dict(self._implementations("notify")).get(name)
        if implementation is None:
            return None
        return lambda event, recipients=(): implementation(event=event, recipients=recipients)

    def redact(self, name: str, text: str) -> str:
        """Return text on one line, without any secret of the plugin's settings."""
        for secret in self._secrets.get(name, ()):
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

    @property
    def read_jobs(self) -> bool:
        """Whether a plugin looks at jobs before they are cleaned."""
        return any(self._implementations(hook) for hook in ("veto_cleanup", "before_stage"))

    def veto(self, job: Job) -> str | None:
        """Return why a plugin keeps this job, or None if none does; a plugin that fails keeps it."""
        for name, veto in self._implementations("veto_cleanup"):
            hanging = self._hanging_vetoes.get(name)
            if hanging is not None and hanging.is_alive():
                return f"{name}: still no answer about another job"
            outcome = call(partial(_reason, veto, job), f"veto ({name})", self._veto_seconds)
            if not outcome.is_over:
                self._hanging_vetoes[name] = outcome.thread
                return f"{name}: no answer within {self._veto_seconds:g} seconds"
            if outcome.failure is not None:
                return f"{name}: the plugin failed ({self.redact(name, outcome.failure.description)})"
            if outcome.result is not None:
                return f"{name}: {self.redact(name, outcome.result) or 'no reason given'}"
        return None

    def before_stage(self, job: Job, artifacts: Sequence[ArtifactPath]) -> str | None:
        """Call every plugin before a job's artifacts are deleted; return why a plugin forbids it, or None.

        The backup is last: each run would make another one of a job that another plugin forbids.
        """
        calls = self._implementations("before_stage")
        for name, prepare in sorted(calls, key=lambda each: each[0] == "backup"):
            # No limit for backups: otherwise a job whose copy takes more than an hour would never be cleaned.
            limit = None if name == "backup" else _BEFORE_STAGE_SECONDS
            work = partial(prepare, job=job, artifacts=tuple(artifacts))
            outcome = call(work, f"before_stage ({name})", limit)
            if not outcome.is_over:
                return f"{name}: not finished within {_BEFORE_STAGE_SECONDS:g} seconds"
            if outcome.failure is not None:
                return f"{name}: {self.redact(name, outcome.failure.description)}"
        return None

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        """Record planned or completed actions.

        Raises:
            AuditError: the record failed; then no further action is allowed.
        """
        for name, write in self._implementations("audit"):
            if name == _AUDIT_LOG:  # part of the program; a slow disk is waited for
                write(entries=entries)
                continue
            outcome = call(partial(write, entries=entries), f"audit ({name})", _AUDIT_SECONDS)
            if not outcome.is_over:
                raise AuditError(
                    f"The plugin {name} did not record actions within {_AUDIT_SECONDS:g} seconds. "
                    "Fix the plugin, or remove it from the configuration."
                )
            if outcome.failure is not None:
                reason = self.redact(name, outcome.failure.description)
                raise AuditError(f"The plugin {name} cannot record actions ({reason}).")

    def expect_audit(self, ledger: Ledger) -> None:
        """Compare the audit log with its anchor in the ledger when the next entry is recorded.

        Raises:
            StoreError: the anchor is not readable.
        """
        if (log := self._audit_log()) is not None:
            path = self._config.notifications.audit_log.path
            log.expect(path, ledger.find_audit_anchor(path))

    def anchor_audit(self, ledger: Ledger, connection: Connection) -> None:
        """Move the anchor in the ledger to the newest entry, in the transaction of a record.

        The anchor stays if the log does not contain what it must contain.
        """
        if (log := self._audit_log()) is not None:
            path = self._config.notifications.audit_log.path
            anchor = ledger.audit_anchor(connection, path)
            newest = log.newest(path, anchor)
            if newest not in {None, anchor}:
                ledger.save_audit_anchor(connection, path, newest, system_clock())

    def _audit_log(self) -> AuditLog | None:
        return self.manager.get_plugin(_AUDIT_LOG) if _AUDIT_LOG in self._targets else None


def _call(
    function: Callable[..., Any], names: Sequence[str], settings: Mapping[str, Any], **arguments: Any
) -> Any:
    values = {**settings, **arguments}
    return function(**{name: values[name] for name in names})


def _reason(veto: Callable[..., object], job: Job) -> str | None:
    """Return a veto as text, None if there is none."""
    value = veto(job=job)
    return None if value is None else text_of(value)


def _delivery_settings(settings: Any) -> NotifierSettings:
    """Return the keys that all notifiers have; a plugin's own definition of such a key can have any type."""
    if not isinstance(settings, NotifierSettings):
        return _Unfiltered()
    model = NotifierSettings if settings.outlives_restarts else _FromMemory
    return model.model_validate({key: getattr(settings, key) for key in NotifierSettings.model_fields})


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
