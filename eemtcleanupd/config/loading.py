"""Merges defaults, file, environment and options into one configuration, with the origin of each value."""

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
from eemtcleanupd.config.schema import Config, Notifiers, Schema
from eemtcleanupd.config.trust import require_not_public, require_trusted
from eemtcleanupd.config.types import DatabaseAddress
from eemtcleanupd.config.yaml_reader import Loc, YamlDocument, dotted, read_document
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.files import read_regular
from eemtcleanupd.formatting import plural, printable

FILE_NAME: Final = "cleanup_config.yaml"
SYSTEM_FILE: Final = Path("/etc/eemtcleanupd") / FILE_NAME
DEFAULT: Final = "default"
"""The origin of a value that no source sets."""

NotifiersOf = Callable[[Sequence[tuple[str, str]], Sequence[str]], Notifiers]
"""A function that returns the settings models of all plugins, by name.

Its arguments are the plugin modules to load, each with its place in the file, and the names of blocked
plugins.
"""

# Keys whose default is in the folder paths.logs.
_IN_LOGS = ("logging.file", "notifications.audit_log.path")
# Blocks that have no effect unless they are enabled.  The keys of `api` also serve other programs.
_SWITCHED = ("notifications.", "backup")
# The deprecated key and the current one.
_DAYS, _HOURS = "retention.successful_jobs.days", "retention.successful_jobs.hours"
_SQLITE_URL = re.compile(r"sqlite(?:\+\w+)?:///(?P<path>[^?]+)", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{(\w+)\}")
_MAX_SECRET_BYTES = 64 * 1024
_MAX_PROBLEMS = 50


@dataclass(frozen=True, slots=True)
class Setting:
    """A key with its effective value for JSON, without secrets, and the origin of the value."""

    key: str
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The effective configuration, the origin of each value by dotted key, and warnings.

    An origin is ``default``, ``FILE:LINE``, or the name of a variable or an option. ``is_empty`` is true if
    the file sets nothing or does not exist. ``values`` are the input of ``config`` and contain its secrets.
    """

    config: Config
    file: Path | None
    origins: Mapping[str, str]
    warnings: tuple[str, ...]
    is_empty: bool
    values: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        self.config.set_file(self.file)

    def settings(self) -> Iterator[Setting]:
        """Yield every key in the order of the schema."""
        for key, origin in self.origins.items():
            value: Any = self.config
            for name in key.split("."):
                value = None if value is None else getattr(value, name)
            yield Setting(key, _shown(value), origin)


def find_file(
    explicit: Path | None, environ: Mapping[str, str], cwd: Path, *, earlier: Path | None = None
) -> Path | None:
    """Return the configuration file to read, or None if there is none.

    The order is ``--config``, EEMT_CLEANUP_CONFIG, ``./cleanup_config.yaml``, then
    ``/etc/eemtcleanupd/cleanup_config.yaml``. A file that exists but is not readable is returned as well,
    because falling back to defaults would delete by rules that the operator did not write. A current folder
    that the caller cannot enter, such as root's home after `sudo -u`, is not searched, unless the file that
    was found ``earlier``, by this process with other rights, is in it.

    A file that is found, not named, must belong to root or the caller, because the current folder can be
    anybody's.

    Raises:
        ConfigError: ``--config`` or the variable names a file that does not exist or that everybody can
            change, or other users can change a file that is found.
    """
    from_environment = variable(environ, CONFIG_FILE)
    named = explicit or (Path(from_environment) if from_environment else None)
    if named is not None:
        file = cwd / named
        if not os.path.lexists(file):
            source = "--config" if explicit else CONFIG_FILE
            raise ConfigError(f"The file {printable(str(file))} does not exist. It is set by {source}.")
        require_not_public(file)
        return file
    local = cwd / FILE_NAME
    found = next(
        (file for file in (local, SYSTEM_FILE) if _is_there(file, if_hidden=file in {SYSTEM_FILE, earlier})),
        None,
    )
    if found is not None:
        require_trusted(found, "If you trust it nevertheless, name it with --config.")
    return found


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
        cwd: the base of relative paths in variables and options, and of default paths if there is no file.
        notifiers_of: returns the settings models of all plugins.

    Returns:
        The configuration, with absolute paths and with secrets read from their files.

    Raises:
        ConfigError: lists every problem, one per line.
    """
    document = read_document(cwd / file) if file else YamlDocument(None)
    environment = read_environment(environ)
    modules, blocked = _texts(document, "plugins"), _texts(document, "blocked_plugins")
    schema = Schema.of(notifiers_of(modules, [name for _, name in blocked]))
    builder = _ConfigBuilder(document, environ, cwd, schema)
    builder.problems += environment.problems
    builder.add_document()
    for key, (value, name) in {**environment.values, **(options or {})}.items():
        builder.put(key, value, name)
    builder.resolve_paths(environment.base_dir)
    builder.read_secrets()
    builder.warn_of_unused_blocks()
    values = builder.nested()
    config = builder.validated(values)
    return Loaded(
        config,
        document.file,
        MappingProxyType({key: builder.origins.get(key, DEFAULT) for key in schema.fields if key != _DAYS}),
        (*environment.warnings, *builder.warnings),
        is_empty=not document.data,
        values=values,
    )


class _ConfigBuilder:
    """Collects the values of all sources by dotted key and validates them."""

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

    def add_document(self) -> None:
        """Add the values of the file. Its problems count even if another source overrides the value."""
        invalid: set[str] = set()
        try:
            self._schema.model.model_validate(self._document.data)
        except ValidationError as error:
            invalid = self._add_problems(error)
        for key in self._schema.fields:
            if any(key == prefix or key.startswith(f"{prefix}.") for prefix in invalid):
                continue  # already reported
            *blocks, name = _loc(key)
            section: Any = self._document.data
            for block in blocks:
                section = section.get(block) if isinstance(section, dict) else None
            if isinstance(section, dict) and name in section:
                self.put(key, section[name], self._document.line(_loc(key)))
        days, origin = self._values.pop(_DAYS, None), self.origins.pop(_DAYS, "")
        if days is not None and _HOURS in self._values:
            line = self._document.line(_loc(_HOURS))
            self._problem(_DAYS, f"{_HOURS} in {line} has the same meaning. Remove one of the two.")
        elif isinstance(days, int | float):
            self.put(_HOURS, days * 24, origin)

    def put(self, key: str, value: object, origin: str) -> None:
        self._values[key] = value
        self.origins[key] = origin

    def resolve_paths(self, base_dir: str | None) -> None:
        """Make all paths absolute. Those in the file are relative to its folder, all others to ``cwd``."""
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
        block = next((prefix for prefix in self._schema.optional_blocks if key.startswith(prefix)), None)
        return block is not None and not any(known.startswith(block) for known in self._values)

    def _absolute(self, key: str, value: str) -> str:
        if key == "paths.database":
            if (match := _SQLITE_URL.fullmatch(value)) is not None:
                value = match["path"]
            elif DatabaseAddress(value).is_url:
                return value
        elif key.removesuffix("_file") in self._schema.secret_keys and "/" not in value:
            # systemd.exec(5), Credentials: a credential of the unit takes precedence over a file.
            credentials = self._environ.get("CREDENTIALS_DIRECTORY")
            if credentials and os.path.lexists(Path(credentials) / value):
                return str(Path(credentials) / value)
        return str((self._file_base if self._is_from_file(key) else self._cwd) / value)

    def read_secrets(self) -> None:
        """Replace each ``${NAME}`` and ``…_file`` with the secret that it names."""
        fields = self._schema.fields
        for key in self._schema.secret_keys:
            switch = f"{key.rpartition('.')[0]}.enabled"
            if switch in fields and self._values.get(switch, fields[switch].default) is False:
                continue
            value, file = self._values.get(key), self._values.get(f"{key}_file")
            if value is not None and file is not None:
                self._problem(f"{key}_file", f"{key} is set as well. Remove one of the two.")
            elif isinstance(value, str) and (key != "paths.database" or DatabaseAddress(value).is_url):
                self._values[key] = _REFERENCE.sub(partial(self._variable, key), value)
            elif isinstance(value, list):
                self._values[key] = [
                    _REFERENCE.sub(partial(self._variable, key), entry) if isinstance(entry, str) else entry
                    for entry in value
                ]
            elif isinstance(file, str):
                self.put(key, self._secret(f"{key}_file", Path(file)), self.origins[f"{key}_file"])

    def warn_of_unused_blocks(self) -> None:
        """Warn of a block that has settings, but whose switch is not set and is off by default."""
        for switch, field_info in self._schema.fields.items():
            block, _, name = switch.rpartition(".")
            if (
                name == "enabled"
                and block.startswith(_SWITCHED)
                and field_info.default is False
                and switch not in self.origins
                and any(key.startswith(f"{block}.") for key in self.origins)
            ):
                self.warnings.append(
                    f"{block} is configured, but not enabled, so it has no effect. Set {switch} to true."
                )

    def _variable(self, key: str, reference: re.Match[str]) -> str:
        name = reference[1]
        if not self._environ.get(name):
            self._problem(key, f"The environment variable {name} is not set.")
        return self._environ.get(name, "")

    def _secret(self, key: str, file: Path) -> str | None:
        try:
            require_trusted(file, "Change its owner or mode.")
            text = read_regular(file, _MAX_SECRET_BYTES).decode().strip()
        except ConfigError as error:
            self._problem(key, str(error))
        except OSError as error:
            self._problem(key, f"Cannot read {printable(str(file))}: {error.strerror}.")
        except UnicodeDecodeError:
            self._problem(key, f"{printable(str(file))} is not UTF-8 text.")
        else:
            if text:
                return text
            self._problem(key, f"{printable(str(file))} is empty.")
        return None

    def nested(self) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for key, value in self._values.items():
            *blocks, name = key.split(".")
            section = nested
            for block in blocks:
                section = section.setdefault(block, {})
            section[name] = value
        return nested

    def validated(self, values: Mapping[str, Any]) -> Config:
        """Return the validated configuration, or raise a ConfigError that lists every problem."""
        try:
            config = self._schema.model.model_validate(values)
        except ValidationError as error:
            self._add_problems(error)
        problems = list(dict.fromkeys(self.problems))
        if len(problems) == 1:
            raise ConfigError(problems[0])
        if problems:
            more = len(problems) - _MAX_PROBLEMS
            tail = [f"and {more} more."] if more > 0 else []
            head = f"The configuration has {plural(len(problems), 'problem')}:"
            raise ConfigError("\n  ".join([head, *problems[:_MAX_PROBLEMS], *tail]))
        return config

    def _add_problems(self, error: ValidationError) -> set[str]:
        invalid = set()
        for detail in error.errors(include_url=False):
            loc = detail["loc"]
            is_from_file = self._other_source(loc) is None
            written = self._document.scalars.get(loc) if is_from_file else None
            message = describe(detail, written, self._schema)
            self._problem_at(loc, message, of_key=detail["type"] == "extra_forbidden")
            invalid.add(_key(loc))
        return invalid

    def _problem(self, key: str, message: str) -> None:
        self._problem_at(_loc(key), message)

    def _problem_at(self, loc: Loc, message: str, *, of_key: bool = False) -> None:
        place = self._other_source(loc) or self._document.place(loc, of_key=of_key)
        self.problems.append(": ".join(part for part in (place, dotted(loc), message) if part))

    def _other_source(self, loc: Loc) -> str | None:
        """Return the variable or option that set a value, None for the file."""
        key = _key(loc)
        return None if self._is_from_file(key) else self.origins.get(key)

    def _is_from_file(self, key: str) -> bool:
        origin = self.origins.get(key, "")
        return self._document.file is not None and origin.startswith(f"{self._document.name}:")


def _is_there(file: Path, *, if_hidden: bool) -> bool:
    try:
        file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # a folder without search permission
        return if_hidden
    except OSError:
        return True
    return True


def _loc(key: str) -> Loc:
    return tuple(key.split("."))


def _key(loc: Loc) -> str:
    return ".".join(part for part in loc if isinstance(part, str))


def _texts(document: YamlDocument, key: str) -> list[tuple[str, str]]:
    """Return the place and text of each entry of a list. Validation refuses other entries later."""
    value = document.data.get(key)
    return [
        (f"{document.place((key, index))}: {dotted((key, index))}", entry)
        for index, entry in enumerate(value if isinstance(value, list) else [])
        if isinstance(entry, str) and entry
    ]


def _shown(value: Any) -> Any:
    """Return a value for JSON, without secrets."""
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
            return [_shown(entry) for entry in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
