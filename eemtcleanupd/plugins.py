"""Finds plugins, lets each say what its settings are, and builds one plugin manager per configuration."""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, cast, get_args

import pluggy
from pydantic import BaseModel, SecretStr, create_model

from eemtcleanupd.config import Config, Loaded, loading
from eemtcleanupd.config.notifier import NotifierSettings, Occasion, Occasions, PluginSettings
from eemtcleanupd.config.schema import BackupConfig, Schema
from eemtcleanupd.errors import AuditError, ConfigError
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.hookspecs import EVENT_HOOKS, NOTIFY_COVERS, PROJECT, ArtifactPath, Hooks
from eemtcleanupd.model import Found, Job
from eemtcleanupd.units import printable

log = logging.getLogger(__name__)

# Named here and not only as entry points: the audit log must not be missing because metadata is.
_OURS: Final = {
    "backup": "eemtcleanupd.backup:Backup",
    "email": "eemtcleanupd.notifiers.email",
    "slack": "eemtcleanupd.notifiers.slack",
    "audit_log": "eemtcleanupd.notifiers.audit_log:AuditLog",
    "prometheus": "eemtcleanupd.notifiers.prometheus:Prometheus",
    "webhook": "eemtcleanupd.notifiers.webhook",
    "ping": "eemtcleanupd.notifiers.ping",
    "apprise": "eemtcleanupd.notifiers.apprise",
}
# Ours whose settings are a block of their own, not one below ``notifications:``.
_BLOCKS: Final = {"backup": "backup", "prometheus": "metrics"}
_VETO_SECONDS = 10.0
_BEFORE_STAGE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class FoundPlugin:
    """A plugin as it was found: where, what, and the model of its settings."""

    name: str
    origin: str
    target: Any
    model: type[PluginSettings] | None


def load(
    file: Path | None,
    *,
    environ: Mapping[str, str],
    options: Mapping[str, tuple[object, str]] | None = None,
    cwd: Path,
) -> Loaded:
    """Load the configuration with the settings of all plugins in it; see :func:`eemtcleanupd.config.load`.

    Raises:
        ConfigError: every problem that was found, a line each; or a plugin that cannot be loaded.
    """
    _installed.cache_clear()  # other packages may be installed by now
    folder = None if file is None else str((cwd / file).parent)
    with _importable(folder):
        return _load_with_plugins(file, environ=environ, options=options, cwd=cwd)


@contextmanager
def _importable(folder: str | None) -> Iterator[None]:
    """Let modules beside the configuration be imported; they come last and take no other's place."""
    if folder is None or folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _load_with_plugins(
    file: Path | None,
    *,
    environ: Mapping[str, str],
    options: Mapping[str, tuple[object, str]] | None,
    cwd: Path,
) -> Loaded:
    return loading.load(
        file,
        environ=environ,
        options=options,
        cwd=cwd,
        notifiers_of=lambda modules, blocked: _settings_models(discover(modules, blocked)),
    )


def schema() -> Schema:
    """Return all keys of the configuration, with those of the notifiers that come with the program."""
    found = [_our_own(name) for name in _OURS]
    return Schema.of(_settings_models(found))


def packed(loaded: Loaded) -> dict[str, Any]:
    """Return a configuration in force as values that can be pickled, for another process of ours.

    The models of plugins' settings are made at run time, so the configuration itself cannot be; nor need what
    a plugin makes of a value.  Its secrets are in it.
    """
    return {
        "values": loaded.values,
        "plugins": loaded.config.plugins,
        "blocked_plugins": loaded.config.blocked_plugins,
        "file": loaded.file,
        "origins": dict(loaded.origins),
        "warnings": loaded.warnings,
        "is_empty": loaded.is_empty,
    }


def unpacked(told: Mapping[str, Any]) -> Loaded:
    """Return the configuration of :func:`packed`; nothing is read anew.

    Raises:
        ConfigError: a plugin cannot be loaded.
    """
    _installed.cache_clear()
    values, file = told["values"], told["file"]
    with _importable(None if file is None else str(file.parent)):
        modules = [("plugins", each) for each in told["plugins"]]
        found = discover(modules, told["blocked_plugins"])
    return Loaded(
        Schema.of(_settings_models(found)).model.model_validate(values),
        file,
        MappingProxyType(told["origins"]),
        told["warnings"],
        is_empty=told["is_empty"],
        values=values,
    )


def _settings_models(found: Sequence[FoundPlugin]) -> dict[str, type[PluginSettings]]:
    return {each.name: each.model for each in found if each.model is not None}


def discover(modules: Sequence[tuple[str, str]], blocked: Sequence[str]) -> list[FoundPlugin]:
    """Find all plugins: those of the program, those that are installed, and those that are named.

    Args:
        modules: where each stands, for messages, and ``module`` or ``module:name``, from ``plugins:``.
        blocked: names not to use, from ``blocked_plugins:``.

    Raises:
        ConfigError: one cannot be loaded, is no plugin, or has the name of another.
    """
    sources: list[tuple[str, str, Callable[[], FoundPlugin]]] = [
        (name, "the program", partial(_our_own, name)) for name in _OURS
    ]
    for name, origin, target in _installed():
        sources.append((name, origin, partial(_load_and_look, name, origin, target)))
    for origin, target in modules:
        name = target.partition(":")[0].rpartition(".")[2]
        sources.append((name, origin, partial(_load_and_look, name, origin, target)))
    found: dict[str, FoundPlugin] = {}
    for name, origin, look in sources:
        if name in blocked:
            continue
        if name in found:
            raise ConfigError(
                f"{origin}: the plugin {printable(name)} comes from {found[name].origin} as well: "
                "take one away, or name it in blocked_plugins"
            )
        found[name] = look()
    return list(found.values())


@cache
def _our_own(name: str) -> FoundPlugin:
    """Return a plugin that comes with the program, which stays what it is."""
    return _load_and_look(name, "the program", _OURS[name])


@cache
def _installed() -> list[tuple[str, str, str]]:
    """Return name, origin and target of each plugin of an installed package, as of the last loading."""
    from importlib.metadata import entry_points  # noqa: PLC0415  (late: nine ms)

    return [
        (
            entry.name,
            f"the installed package {entry.dist.name}" if entry.dist else "an installed package",
            entry.value,
        )
        for entry in entry_points(group=PROJECT)
    ]


def _load_and_look(name: str, origin: str, target: str) -> FoundPlugin:
    return _found(name, origin, _load(target, origin))


def _load(target: str, origin: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
    except Exception as error:  # whatever a foreign module does when it is imported
        is_installed = origin.startswith(("the installed package", "an installed package"))
        hint = "; blocked_plugins leaves it out" if is_installed else ""
        raise ConfigError(
            f"{origin}: the plugin {printable(target)} cannot be loaded ({_words(error)}){hint}"
        ) from error


def _found(name: str, origin: str, target: Any) -> FoundPlugin:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    try:
        instance = target() if inspect.isclass(target) else target
        manager.register(instance, name)
        manager.check_pending()
        implementations = [each for hook in vars(manager.hook).values() for each in hook.get_hookimpls()]
        registered = [each.function() for each in implementations if _hook(each) == "register_settings"]
    except Exception as error:
        raise ConfigError(f"{origin}: the plugin {printable(name)} is wrong: {_words(error)}") from error
    if not implementations:
        raise ConfigError(f"{origin}: {printable(name)} is no plugin: it has no function with @hookimpl")
    if any(each.wrapper or each.hookwrapper for each in implementations):
        raise ConfigError(f"{origin}: the plugin {printable(name)} wraps hooks, which is not possible here")
    hooks = {_hook(each) for each in implementations}
    return FoundPlugin(
        name, origin, target, _settings_model(name, origin, registered[0] if registered else None, hooks)
    )


def _hook(implementation: Any) -> str:
    return str(implementation.opts.get("specname") or implementation.function.__name__)


def _settings_model(name: str, origin: str, model: Any, hooks: set[str]) -> type[PluginSettings] | None:
    """Return the model of a plugin's block: its own, with the keys that all plugins, or notifiers, have."""
    if name in _BLOCKS:
        return None
    base = NotifierSettings if hooks & set(EVENT_HOOKS) else PluginSettings
    if model is None:
        return _Plain if base is NotifierSettings else _PlainGuard
    if not (inspect.isclass(model) and issubclass(model, BaseModel)):
        raise ConfigError(
            f"{origin}: the plugin {printable(name)} is wrong: register_settings must return a pydantic model"
        )
    if issubclass(model, base):
        return model
    return _combined(model, base)


@lru_cache(maxsize=64)
def _combined(model: type[BaseModel], base: type[PluginSettings]) -> type[PluginSettings]:
    """Return a plugin's model with our keys; what it says of a key wins."""
    combined: Any = create_model(
        model.__name__,
        __base__=(model, base),
        __doc__=model.__doc__,
    )
    return cast("type[PluginSettings]", combined)


class _Plain(NotifierSettings):
    """A notifier without settings of its own."""


class _PlainGuard(PluginSettings):
    """A plugin without settings of its own."""


class _Unfiltered(NotifierSettings):
    """A notifier that is told of everything and only tells how things are now."""

    outlives_restarts: ClassVar[bool] = False
    on: Occasions = get_args(Occasion)


class PluginSet:
    """The plugins of one configuration.

    Args:
        config: the configuration.
        before: the plugins of the configuration before; a class that is still in use keeps its instance.

    Raises:
        ConfigError: a plugin cannot be loaded, or does not do what its settings ask for.
    """

    def __init__(self, config: Config, before: PluginSet | None = None) -> None:
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
                and self.listener(found.name, "digest") is None
            ):
                raise ConfigError(f"notifications.{found.name}.digest: it cannot send digests: leave it out")
        if config.backup.enabled and "backup" not in self._targets:
            raise ConfigError("backup.enabled is true, but blocked_plugins leaves backup out: choose one")

    def _settings_of(self, found: FoundPlugin) -> Any:
        if found.name in _BLOCKS:
            return getattr(self._config, _BLOCKS[found.name])
        settings = getattr(self._config.notifications, found.name, None)
        if settings is None and found.origin == "plugins" and found.model is not None:
            needed = [key for key, field in found.model.model_fields.items() if field.is_required()]
            raise ConfigError(f"notifications.{found.name} is missing; it needs {', '.join(needed)}")
        return settings

    def _instance(self, found: FoundPlugin, before: PluginSet | None) -> Any:
        if not inspect.isclass(found.target):
            return found.target
        if before is not None and before._targets.get(found.name) is found.target:  # noqa: SLF001
            return before.manager.get_plugin(found.name)
        return found.target()

    @property
    def names(self) -> list[str]:
        """The names of all plugins that are in use."""
        return list(self._targets)

    def only(self, names: Sequence[str]) -> PluginSet:
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

    def listener(self, name: str, hook: str) -> Callable[[object], object] | None:
        """Return what calls a notifier's hook with an event, None when it has no such hook."""
        found = dict(self._implementations(hook)).get(name)
        if found is None and hook in NOTIFY_COVERS:
            found = dict(self._implementations("notify")).get(name)
        return None if found is None else lambda event: found(event=event)

    def redacted(self, name: str, text: str) -> str:
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
                return f"{name}: it failed ({self.redacted(name, _words(error))})"
            if value is not None:
                return f"{name}: {self.redacted(name, str(value)) or 'no reason given'}"
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
                return f"{name}: {self.redacted(name, _words(answer[1]))}"
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
                raise AuditError(f"{name} cannot write down what is done ({_words(error)})") from error


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


def _words(error: BaseException) -> str:
    """Return what an exception says, with its kind where that is all there is."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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
