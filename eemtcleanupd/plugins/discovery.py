"""Finds plugins, lets each say what its settings are, and loads the configuration with these."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

import pluggy
import yaml
from pydantic import BaseModel, create_model

from eemtcleanupd.config import Loaded, loading
from eemtcleanupd.config.plugin_settings import NotifierSettings, PluginSettings
from eemtcleanupd.config.schema import Schema
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.formatting import printable
from eemtcleanupd.hookspecs import EVENT_HOOKS, PROJECT, Hooks

# Named here and not only as entry points: the audit log must not be missing because metadata is.
_OURS: Final = {
    "backup": "eemtcleanupd.plugins.backup:BackupPlugin",
    "email": "eemtcleanupd.notifiers.email",
    "slack": "eemtcleanupd.notifiers.slack",
    "audit_log": "eemtcleanupd.notifiers.audit_log:AuditLog",
    "prometheus": "eemtcleanupd.notifiers.prometheus:Prometheus",
    "webhook": "eemtcleanupd.notifiers.webhook",
    "ping": "eemtcleanupd.notifiers.healthchecks",
    "apprise": "eemtcleanupd.notifiers.apprise",
}
# Ours whose settings are a block of their own, not one below ``notifications:``.
BLOCKS: Final = {"backup": "backup", "prometheus": "metrics"}


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
    found = [_builtin(name) for name in _OURS]
    return Schema.of(_settings_models(found))


def to_dict(loaded: Loaded) -> dict[str, Any]:
    """Return a configuration as JSON values, secrets included, for another process of the program.

    The models of plugins' settings exist at run time only, so the receiver creates them again.  ``values``
    is YAML text, because JSON has no timestamps.
    """
    return {
        "values": yaml.safe_dump(dict(loaded.values)),
        "plugins": list(loaded.config.plugins),
        "blocked_plugins": list(loaded.config.blocked_plugins),
        "file": None if loaded.file is None else str(loaded.file),
        "origins": dict(loaded.origins),
        "warnings": list(loaded.warnings),
        "is_empty": loaded.is_empty,
    }


def from_dict(document: Mapping[str, Any]) -> Loaded:
    """Return the configuration of :func:`to_dict`, without reading its file again.

    Raises:
        ConfigError: a plugin cannot be loaded.
    """
    _installed.cache_clear()
    values = yaml.safe_load(document["values"])
    file = None if document["file"] is None else Path(document["file"])
    with _importable(None if file is None else str(file.parent)):
        modules = [("plugins", name) for name in document["plugins"]]
        plugins = discover(modules, document["blocked_plugins"])
    return Loaded(
        Schema.of(_settings_models(plugins)).model.model_validate(values),
        file,
        MappingProxyType(document["origins"]),
        tuple(document["warnings"]),
        is_empty=document["is_empty"],
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
        (name, "the program", partial(_builtin, name)) for name in _OURS
    ]
    for name, origin, target in _installed():
        sources.append((name, origin, partial(_load_plugin, name, origin, target)))
    for origin, target in modules:
        name = target.partition(":")[0].rpartition(".")[2]
        sources.append((name, origin, partial(_load_plugin, name, origin, target)))
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
def _builtin(name: str) -> FoundPlugin:
    """Return a plugin that comes with the program, which stays what it is."""
    return _load_plugin(name, "the program", _OURS[name])


@cache
def _installed() -> list[tuple[str, str, str]]:
    """Return name, origin and target of each plugin of an installed package, as of the last loading."""
    from importlib.metadata import entry_points

    return [
        (
            entry.name,
            f"the installed package {entry.dist.name}" if entry.dist else "an installed package",
            entry.value,
        )
        for entry in entry_points(group=PROJECT)
    ]


def _load_plugin(name: str, origin: str, target: str) -> FoundPlugin:
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
            f"{origin}: the plugin {printable(target)} cannot be loaded ({describe_exception(error)}){hint}"
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
        raise ConfigError(
            f"{origin}: the plugin {printable(name)} is wrong: {describe_exception(error)}"
        ) from error
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
    if name in BLOCKS:
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


def describe_exception(error: BaseException) -> str:
    """Return what an exception says, with its kind where that is all there is."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
