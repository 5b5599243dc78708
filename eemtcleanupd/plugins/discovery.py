"""Discovers plugins and loads the configuration with the settings that they register."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final, TypeVar, cast

import pluggy
import yaml
from pydantic import BaseModel, create_model

from eemtcleanupd.config import Config, Loaded, loading
from eemtcleanupd.config.plugin_settings import NotifierSettings, PluginSettings
from eemtcleanupd.config.schema import Notifiers, Schema
from eemtcleanupd.config.trust import require_trusted_code, require_trusted_module
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.formatting import printable
from eemtcleanupd.hookspecs import EVENT_HOOKS, PROJECT, Hooks
from eemtcleanupd.plugins.guard import call, class_name, text_of

# Not entry points: the audit log must not depend on the metadata of a package.
_BUILTIN: Final = {
    "backup": "eemtcleanupd.plugins.backup:BackupPlugin",
    "email": "eemtcleanupd.notifiers.email",
    "slack": "eemtcleanupd.notifiers.slack",
    "audit_log": "eemtcleanupd.notifiers.audit_log:AuditLog",
    "prometheus": "eemtcleanupd.notifiers.prometheus:Prometheus",
    "webhook": "eemtcleanupd.notifiers.webhook",
    "ping": "eemtcleanupd.notifiers.healthchecks",
    "apprise": "eemtcleanupd.notifiers.apprise",
}
BLOCKS: Final = {"backup": "backup", "prometheus": "metrics"}
"""Built-in plugins whose settings are not below ``notifications:``, with the block of each."""
_PROGRAM, _PACKAGE = "eemtcleanupd", "an installed package"
_LOAD_SECONDS = 20.0
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class FoundPlugin:
    """A discovered plugin: its origin, its module or class, and the model of its settings."""

    name: str
    origin: str
    target: Any
    model: type[PluginSettings] | None

    @property
    def is_builtin(self) -> bool:
        """Whether the plugin is part of the program."""
        return self.origin == _PROGRAM


def load(
    file: Path | None,
    *,
    environ: Mapping[str, str],
    options: Mapping[str, tuple[object, str]] | None = None,
    cwd: Path,
) -> Loaded:
    """Load the configuration with the settings of all plugins; see :func:`eemtcleanupd.config.load`.

    Raises:
        ConfigError: one line for each invalid key, or a plugin that cannot be loaded.
    """
    _installed.cache_clear()  # packages can be installed meanwhile
    folder = None if file is None else str((cwd / file).parent)
    work = partial(
        loading.load,
        file,
        environ=environ,
        options=options,
        cwd=cwd,
        notifiers_of=lambda modules, blocked: _settings_models(discover(modules, blocked)),
    )
    with _importable(folder):
        return guarded(work, "The configuration cannot be validated", is_secret=True)


@contextmanager
def _importable(folder: str | None) -> Iterator[None]:
    """Allow imports of modules beside the configuration, after all other modules."""
    if folder is None:
        yield
        return
    finder = _Beside(folder)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Beside(MetaPathFinder):
    """Finds modules beside the configuration.

    Every one is checked, not only plugins: libraries try to import modules that are not installed.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module is; refuse one that another user can change."""
        spec = None if path is not None else PathFinder.find_spec(fullname, [self._folder], target)
        if spec is not None:
            try:
                require_trusted_code(spec)
            except ConfigError as error:
                raise ImportError(str(error).removesuffix("."), name=fullname) from error
        return spec


def schema() -> Schema:
    """Return all keys of the configuration, with those of the built-in notifiers."""
    return Schema.of(_settings_models([_builtin(name) for name in _BUILTIN]))


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
    modules = [("plugins", name) for name in document["plugins"]]

    def validated() -> Config:
        plugins = discover(modules, document["blocked_plugins"])
        return Schema.of(_settings_models(plugins)).model.model_validate(values)

    with _importable(None if file is None else str(file.parent)):
        config = guarded(validated, "The configuration cannot be validated", is_secret=True)
    return Loaded(
        config,
        file,
        MappingProxyType(document["origins"]),
        tuple(document["warnings"]),
        is_empty=document["is_empty"],
        values=values,
    )


def _settings_models(plugins: Sequence[FoundPlugin]) -> Notifiers:
    return tuple((plugin.name, plugin.model) for plugin in plugins if plugin.model is not None)


def discover(modules: Sequence[tuple[str, str]], blocked: Sequence[str]) -> list[FoundPlugin]:
    """Return all plugins: built-in ones, those of installed packages, and those named in ``plugins:``.

    Args:
        modules: for each item of ``plugins:``, its position for messages, and ``module`` or ``module:class``.
        blocked: names that are left out, from ``blocked_plugins:``.

    Raises:
        ConfigError: a plugin cannot be loaded, has no hooks, or has the name of another.
    """
    sources: list[tuple[str, str, Callable[[], FoundPlugin]]] = [
        (name, _PROGRAM, partial(_builtin, name)) for name in _BUILTIN
    ]
    for name, origin, target in _installed():
        sources.append((name, origin, partial(_load_plugin, name, origin, target)))
    for origin, target in modules:
        name = target.partition(":")[0].rpartition(".")[2]
        sources.append((name, origin, partial(_load_plugin, name, origin, target)))
    plugins: dict[str, FoundPlugin] = {}
    for name, origin, load_plugin in sources:
        if name in blocked:
            continue
        if name in plugins:
            raise ConfigError(
                f"{origin}: The plugin {printable(name)} also comes from {plugins[name].origin}. "
                "Remove one of them, or add the name to blocked_plugins."
            )
        plugins[name] = load_plugin()
    return list(plugins.values())


@cache
def _builtin(name: str) -> FoundPlugin:
    """Return a built-in plugin; it never changes, so it is loaded once."""
    return _load_plugin(name, _PROGRAM, _BUILTIN[name])


@cache
def _installed() -> list[tuple[str, str, str]]:
    """Return name, origin and target of each plugin of an installed package."""
    from importlib.metadata import entry_points

    return [
        (entry.name, f"the installed package {entry.dist.name}" if entry.dist else _PACKAGE, entry.value)
        for entry in entry_points(group=PROJECT)
    ]


def guarded(work: Callable[[], Result], problem: str, advice: str = "", *, is_secret: bool = False) -> Result:
    """Return the result of work that calls code of plugins, such as imports and validators.

    Args:
        work: what to do.
        problem: what failed if it fails, without a full stop.
        advice: a sentence for the end of the message.
        is_secret: whether the text of an exception can contain a secret, so that only its class is named.

    Raises:
        ConfigError: the work raised anything, or did not end in time.
    """
    outcome = call(work, "loading a plugin", _LOAD_SECONDS)
    failure = outcome.failure
    if failure is None:
        if outcome.is_over:
            return cast("Result", outcome.result)
        raise ConfigError(f"{problem} (not finished within {_LOAD_SECONDS:g} seconds). {advice}".rstrip())
    if type(failure.error) is ConfigError:
        raise ConfigError(text_of(failure.error)) from failure.error
    reason = class_name(failure.error) if is_secret else printable(failure.description)
    raise ConfigError(f"{problem} ({reason}). {advice}".rstrip()) from failure.error


def _load_plugin(name: str, origin: str, path: str) -> FoundPlugin:
    if origin == _PROGRAM:
        return _load(name, origin, path)
    is_installed = origin.startswith(("the installed package", _PACKAGE))
    return guarded(
        partial(_load, name, origin, path),
        f"{origin}: Cannot load the plugin {printable(path)}",
        "To leave it out, add its name to blocked_plugins." if is_installed else "",
    )


def _load(name: str, origin: str, path: str) -> FoundPlugin:
    module, _, attribute = path.partition(":")
    if origin != _PROGRAM:
        try:
            require_trusted_module(module)
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from error
    target: Any = importlib.import_module(module)
    if attribute:
        target = getattr(target, attribute)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    manager.register(target() if inspect.isclass(target) else target, name)
    manager.check_pending()
    implementations = [impl for hook in vars(manager.hook).values() for impl in hook.get_hookimpls()]
    models = [impl.function() for impl in implementations if _hook(impl) == "register_settings"]
    if not implementations:
        raise ConfigError(
            f"{origin}: {printable(name)} is not a plugin, because it has no function with @hookimpl."
        )
    if any(impl.wrapper or impl.hookwrapper for impl in implementations):
        raise ConfigError(
            f"{origin}: The plugin {printable(name)} uses hook wrappers, which are not supported."
        )
    hooks = {_hook(impl) for impl in implementations}
    if name in BLOCKS:
        return FoundPlugin(name, origin, target, None)
    base = NotifierSettings if hooks & set(EVENT_HOOKS) else PluginSettings
    model = models[0] if models and models[0] is not None else base
    if not (inspect.isclass(model) and issubclass(model, BaseModel)):
        raise ConfigError(
            f"{origin}: The plugin {printable(name)} is invalid: register_settings must return a pydantic "
            "model."
        )
    return FoundPlugin(name, origin, target, model if issubclass(model, base) else _combined(model, base))


def _hook(implementation: Any) -> str:
    return str(implementation.opts.get("specname") or implementation.function.__name__)


@lru_cache(maxsize=64)
def _combined(model: type[BaseModel], base: type[PluginSettings]) -> type[PluginSettings]:
    """Return a plugin's model with the keys of ``base``; the plugin's definition of a key has priority."""
    combined: Any = create_model(model.__name__, __base__=(model, base), __doc__=model.__doc__)
    return cast("type[PluginSettings]", combined)
