"""From defaults, file, environment and options to one configuration that knows where each value came from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel, SecretStr, ValidationError

from eemtcleanupd.config.environment import BASE_DIR, CONFIG_FILE, read_environment, variable
from eemtcleanupd.config.error_messages import describe
from eemtcleanupd.config.plugin_settings import PluginSettings
from eemtcleanupd.config.schema import Config, Schema
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.config.yaml_reader import Loc, YamlDocument, dotted, read_document
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.formatting import printable

FILE_NAME: Final = "cleanup_config.yaml"
SYSTEM_FILE: Final = Path("/etc/eemtcleanupd") / FILE_NAME
DEFAULT: Final = "default"
"""The origin of a value that nobody set."""

NotifiersOf = Callable[[Sequence[tuple[str, str]], Sequence[str]], Mapping[str, type[PluginSettings]]]
"""From the modules of plugins to load, each behind the place where it stands, and the names of those to block
to the settings of all notifiers."""

# Defaults that lie in a folder which has a key of its own.
_IN_LOGS = ("logging.file", "notifications.audit_log.path")
# Older spelling, today's, and what to multiply by.
_OLDER = (("retention.successful_jobs.days", "retention.successful_jobs.hours", 24),)
_SQLITE_URL = re.compile(r"sqlite(?:\+\w+)?:///(?P<path>[^?]+)", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{(\w+)\}")
_MAX_SECRET_BYTES = 64 * 1024
_MAX_PROBLEMS = 50


@dataclass(frozen=True, slots=True)
class Setting:
    """A key with its effective value as JSON has it, secrets hidden, and where it came from."""

    key: str
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The effective configuration, where each value came from (by dotted key), and what to warn of.

    An origin is ``default``, ``FILE:LINE``, or the name of a variable or of an option.  ``is_empty`` is
    true when the file sets nothing, or there is none.  ``values`` are what ``config`` was made of, as YAML
    has values, with the secrets in clear.
    """

    config: Config
    file: Path | None
    origins: Mapping[str, str]
    warnings: tuple[str, ...]
    is_empty: bool
    values: Mapping[str, Any] = field(repr=False)

    def settings(self) -> Iterator[Setting]:
        """Yield every key in the order of the schema."""
        for key, origin in self.origins.items():
            value: Any = self.config
            for name in key.split("."):
                value = None if value is None else getattr(value, name)
            yield Setting(key, _shown(value), origin)


def find_file(explicit: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the configuration file to read, None when there is none.

    The order is ``--config``, EEMT_CLEANUP_CONFIG, ``./cleanup_config.yaml``, then
    ``/etc/eemtcleanupd/cleanup_config.yaml``.  A file that is there but cannot be read is returned all the
    same: to fall back to defaults would delete by rules that nobody wrote.

    Raises:
        ConfigError: a file that was named does not exist.
    """
    from_environment = variable(environ, CONFIG_FILE)
    named = explicit or (Path(from_environment) if from_environment else None)
    if named is not None:
        file = cwd / named
        if not os.path.lexists(file):
            source = "--config" if explicit else CONFIG_FILE
            raise ConfigError(f"there is no file {printable(str(file))}, which {source} names")
        return file
    return next((file for file in (cwd / FILE_NAME, SYSTEM_FILE) if _is_there(file)), None)


def load(
    file: Path | None,
    *,
    environ: Mapping[str, str],
    options: Mapping[str, tuple[object, str]] | None = None,
    cwd: Path,
    notifiers_of: NotifiersOf,
) -> Loaded:
    """Load the configuration: defaults, then the file, the environment, and the options.

    Args:
        file: the YAML file, or None.
        environ: the environment variables.
        options: values of the command line by dotted key, each with the option's name.
        cwd: what relative paths of variables and options (without a file: of defaults too) start from.
        notifiers_of: says which notifiers there are and what their blocks may hold.

    Returns:
        The configuration; all its paths are absolute, and its secrets are read.

    Raises:
        ConfigError: every problem that was found, a line each.
    """
    document = read_document(cwd / file) if file else YamlDocument(None)
    environment = read_environment(environ)
    modules, blocked = _texts(document, "plugins"), _texts(document, "blocked_plugins")
    schema = Schema.of(notifiers_of(modules, [name for _, name in blocked]))
    assembly = _ConfigBuilder(document, environ, cwd, schema)
    assembly.problems += environment.problems
    assembly.take_document()
    for key, (value, name) in {**environment.values, **(options or {})}.items():
        assembly.put(key, value, name)
    assembly.resolve_paths(environment.base_dir)
    assembly.read_secrets()
    values = assembly.nested()
    config = assembly.validated(values)
    return Loaded(
        config,
        document.file,
        MappingProxyType({key: assembly.origins.get(key, DEFAULT) for key in _shown_keys(schema)}),
        (*environment.warnings, *assembly.warnings),
        is_empty=not document.data,
        values=values,
    )


class _ConfigBuilder:
    """The values of all sources by dotted key, on their way into the schema."""

    def __init__(self, document: YamlDocument, environ: Mapping[str, str], cwd: Path, schema: Schema) -> None:
        self._schema = schema
        self.origins: dict[str, str] = {}
        self.problems = list(document.problems)
        self.warnings: list[str] = []
        self._document = document
        self._environ = environ
        self._cwd = cwd
        self._file_base = document.file.parent if document.file else cwd
        self._values: dict[str, Any] = {}

    def take_document(self) -> None:
        """Take the file's values; its problems count even where something else overrides the value."""
        wrong: set[str] = set()
        try:
            self._schema.model.model_validate(self._document.data)
        except ValidationError as error:
            wrong = self._note(error)
        for key in self._schema.fields:
            if any(key == each or key.startswith(f"{each}.") for each in wrong):
                continue  # told already
            *blocks, name = _loc(key)
            place: Any = self._document.data
            for block in blocks:
                place = place.get(block) if isinstance(place, dict) else None
            if isinstance(place, dict) and name in place:
                self.put(key, place[name], self._document.line(_loc(key)))
        for older, key, factor in _OLDER:
            value, origin = self._values.pop(older, None), self.origins.pop(older, "")
            if value is not None and key in self._values:
                line = self._document.line(_loc(key))
                self._problem(older, f"{key} in {line} says the same: keep one of the two")
            elif isinstance(value, int | float):
                self.put(key, value * factor, origin)

    def put(self, key: str, value: object, origin: str) -> None:
        """Put a value over what an earlier source said."""
        self._values[key] = value
        self.origins[key] = origin

    def resolve_paths(self, base_dir: str | None) -> None:
        """Make all paths absolute: the file's from its folder, those of variables and options from cwd."""
        for key in self._schema.path_keys:
            value = self._values.get(key)
            if isinstance(value, str) and value.strip():
                self._values[key] = self._absolute(key, value)
            elif key in self._values or self._is_in_absent_block(key):
                pass
            elif isinstance(default := self._schema.fields[key].default, str | Path):
                if key.startswith("paths.") and base_dir:
                    self.put(key, str(self._cwd / base_dir / default), BASE_DIR)
                elif key in _IN_LOGS and isinstance(logs := self._values["paths.logs"], str):
                    self._values[key] = str(Path(logs) / Path(default).name)
                else:
                    self._values[key] = str(self._file_base / default)

    def _is_in_absent_block(self, key: str) -> bool:
        block = next((each for each in self._schema.optional_blocks if key.startswith(each)), None)
        return block is not None and not any(each.startswith(block) for each in self._values)

    def _absolute(self, key: str, value: str) -> str:
        if key == "paths.database":
            if (match := _SQLITE_URL.fullmatch(value)) is not None:
                value = match["path"]
            elif DatabaseAddress(value).is_url:
                return value
        elif key.removesuffix("_file") in self._schema.secret_keys and "/" not in value:
            # systemd.exec(5), Credentials: a name among the unit's own wins over a file of that name.
            credentials = self._environ.get("CREDENTIALS_DIRECTORY")
            if credentials and os.path.lexists(Path(credentials) / value):
                return str(Path(credentials) / value)
        return str((self._file_base if self._is_from_file(key) else self._cwd) / value)

    def read_secrets(self) -> None:
        """Put each secret in the place of the ``${NAME}`` or the ``…_file`` that says where it is."""
        fields = self._schema.fields
        for key in self._schema.secret_keys:
            switch = f"{key.rpartition('.')[0]}.enabled"
            if switch in fields and self._values.get(switch, fields[switch].default) is False:
                continue
            value, file = self._values.get(key), self._values.get(f"{key}_file")
            if value is not None and file is not None:
                self._problem(f"{key}_file", f"{key} is set as well: keep one of the two")
            elif isinstance(value, str) and (key != "paths.database" or DatabaseAddress(value).is_url):
                self._values[key] = _REFERENCE.sub(partial(self._variable, key), value)
            elif isinstance(value, list):
                self._values[key] = [
                    _REFERENCE.sub(partial(self._variable, key), each) if isinstance(each, str) else each
                    for each in value
                ]
            elif isinstance(file, str):
                self.put(key, self._secret(f"{key}_file", Path(file)), self.origins[f"{key}_file"])

    def _variable(self, key: str, reference: re.Match[str]) -> str:
        name = reference[1]
        if not self._environ.get(name):
            self._problem(key, f"the variable {name}, which it names, is not set")
        return self._environ.get(name, "")

    def _secret(self, key: str, file: Path) -> str | None:
        try:
            with file.open("rb") as stream:
                text = stream.read(_MAX_SECRET_BYTES).decode().strip()
        except OSError as error:
            self._problem(key, f"{printable(str(file))} cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self._problem(key, f"{printable(str(file))} is not UTF-8 text")
        else:
            if text:
                return text
            self._problem(key, f"{printable(str(file))} is empty")
        return None

    def nested(self) -> dict[str, Any]:
        """Return the values as the file would have them."""
        nested: dict[str, Any] = {}
        for key, value in self._values.items():
            *blocks, name = key.split(".")
            place = nested
            for block in blocks:
                place = place.setdefault(block, {})
            place[name] = value
        return nested

    def validated(self, values: Mapping[str, Any]) -> Config:
        """Return the configuration, or raise ConfigError with every problem."""
        try:
            config = self._schema.model.model_validate(values)
        except ValidationError as error:
            self._note(error)
        problems = list(dict.fromkeys(self.problems))
        if len(problems) == 1:
            raise ConfigError(problems[0])
        if problems:
            more = len(problems) - _MAX_PROBLEMS
            tail = [f"and {more} more"] if more > 0 else []
            head = f"the configuration has {len(problems)} problems:"
            raise ConfigError("\n  ".join([head, *problems[:_MAX_PROBLEMS], *tail]))
        return config

    def _note(self, error: ValidationError) -> set[str]:
        """Note what is wrong and return the keys."""
        wrong = set()
        for detail in error.errors(include_url=False):
            loc = detail["loc"]
            is_from_file = self._elsewhere(loc) is None
            written = self._document.scalars.get(loc) if is_from_file else None
            words = describe(detail, written, self._schema)
            self._problem_at(loc, words, of_key=detail["type"] == "extra_forbidden")
            wrong.add(_key(loc))
        return wrong

    def _problem(self, key: str, words: str) -> None:
        self._problem_at(_loc(key), words)

    def _problem_at(self, loc: Loc, words: str, *, of_key: bool = False) -> None:
        place = self._elsewhere(loc) or self._document.place(loc, of_key=of_key)
        self.problems.append(": ".join(part for part in (place, dotted(loc), words) if part))

    def _elsewhere(self, loc: Loc) -> str | None:
        """Return the variable or the option that a value came from, None for the file."""
        key = _key(loc)
        return None if self._is_from_file(key) else self.origins.get(key)

    def _is_from_file(self, key: str) -> bool:
        origin = self.origins.get(key, "")
        return self._document.file is not None and origin.startswith(f"{self._document.name}:")


def _is_there(file: Path) -> bool:
    try:
        file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # perhaps a folder that may not be entered
        return True
    return True


def _loc(key: str) -> Loc:
    return tuple(key.split("."))


def _key(loc: Loc) -> str:
    return ".".join(part for part in loc if isinstance(part, str))


def _texts(document: YamlDocument, key: str) -> list[tuple[str, str]]:
    """Return where each text of a list stands, and the text; anything else is refused later."""
    value = document.data.get(key)
    return [
        (f"{document.place((key, at))}: {dotted((key, at))}", each)
        for at, each in enumerate(value if isinstance(value, list) else [])
        if isinstance(each, str) and each
    ]


def _shown_keys(schema: Schema) -> Iterator[str]:
    older = {key for key, _, _ in _OLDER}
    return (key for key in schema.fields if key not in older)


def _shown(value: Any) -> Any:
    """Return a value as JSON has it, without secrets."""
    match value:
        case SecretStr():
            return "********"
        case DatabaseAddress():
            return value.redacted
        case PurePath():
            return str(value)
        case BaseModel():
            return {name: _shown(getattr(value, name)) for name in type(value).model_fields}
        case tuple():
            return [_shown(each) for each in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
