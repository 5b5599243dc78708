"""From file, environment and options to one configuration that knows where each value came from."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from eemtcleanupd.config.document import Document, Path_, dotted, read_document
from eemtcleanupd.config.environment import BASE_DIR, CONFIG_FILE, read_environment
from eemtcleanupd.config.schema import Config
from eemtcleanupd.errors import ConfigError
from eemtcleanupd.units import printable, shortened

_STORE_PATHS = ("paths.database", "paths.uploads", "paths.results", "paths.temp", "paths.logs")
_OTHER_PATHS = (
    "backup.path",
    "metrics.textfile",
    "logging.file",
    "api.tokens_file",
    "notifications.audit_log.path",
)
# Where a default lies in a folder that can be set by itself.
_IN_LOGS = {"logging.file": "cleanup.log", "notifications.audit_log.path": "cleanup_audit.jsonl"}
_SECRETS = ("notifications.slack.webhook_url",)

# What this version cannot do yet: the key, the value that is harmless, what is missing.
_WITHOUT_EFFECT: tuple[tuple[str, object, str], ...] = (
    ("performance.executor", "threads", "workers are threads"),
    ("performance.io_priority", "best-effort", "disk priority is not set"),
    ("performance.max_deletes_per_second", 0, "the rate is not limited"),
    ("pressure.enabled", False, "nothing is cleaned early"),
    ("api.enabled", False, "HTTP is not served"),
    ("metrics.textfile", None, "no metrics are written"),
    ("notifications.email.enabled", False, "no e-mail is sent"),
    ("notifications.slack.enabled", False, "nothing is posted"),
    ("notifications.audit_log.enabled", False, "the audit is in table cleanup_audit alone"),
)
# The same, where going on without it would delete what its user means to keep.
_REFUSED: tuple[tuple[str, object, str], ...] = (
    ("backup.enabled", False, "backups"),
    ("plugins", (), "plugins, which may veto a cleanup"),
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The effective configuration, where each value came from (by dotted key), and what to warn of."""

    config: Config
    file: Path | None
    origins: Mapping[str, str]
    warnings: tuple[str, ...]

    def settings(self) -> Iterator[tuple[str, object, str]]:
        """Yield each key with its value, secrets hidden, and its origin, in the order of the schema."""
        for key, value in _leaves(self.config, ""):
            yield key, value, self.origins.get(key, "default")


def find_file(explicit: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the configuration file to read, None when there is none.

    The order is DESIGN's: ``--config``, EEMT_CLEANUP_CONFIG, ``./cleanup_config.yaml``, then
    ``/etc/eemtcleanupd/cleanup_config.yaml``.  Raises ConfigError when one that was named is missing.
    """
    named = explicit or (Path(environ[CONFIG_FILE]) if environ.get(CONFIG_FILE) else None)
    if named is not None:
        file = cwd / named
        if not file.is_file():
            source = "--config" if explicit else CONFIG_FILE
            raise ConfigError(f"there is no file {file}, which {source} names")
        return file
    usual = (cwd / "cleanup_config.yaml", Path("/etc/eemtcleanupd/cleanup_config.yaml"))
    return next((file for file in usual if file.is_file()), None)


def load(
    file: Path | None,
    *,
    environ: Mapping[str, str],
    options: Mapping[str, tuple[object, str]] | None = None,
    cwd: Path,
) -> Loaded:
    """Load the configuration: defaults, then the file, the environment, and the options.

    Args:
        file: the YAML file, or None.
        environ: the environment variables.
        options: values of the command line by dotted key, each with the option's name.
        cwd: what relative paths of variables and options (without a file: of defaults too) start from.

    Raises:
        ConfigError: every problem that was found, a line each.
    """
    document = read_document(file.absolute()) if file else Document(Path("(no file)"))
    merge = _Merge(document, file is not None, cwd)
    from_environment, warnings = read_environment(environ)
    for key, (value, name) in {**from_environment, **(options or {})}.items():
        merge.set(key, value, name)
    merge.resolve_paths(environ)
    merge.resolve_secrets(environ)
    config = merge.validate()
    warnings += _consider(config, merge.origins)
    return Loaded(config, file.absolute() if file else None, merge.origins, tuple(warnings))


class _Merge:
    """The values on their way into the schema, and where each came from."""

    def __init__(self, document: Document, has_file: bool, cwd: Path) -> None:
        self._document = document
        self._data = document.data
        self._cwd = cwd
        self._file_base = document.file.parent if has_file else cwd
        self._problems = list(document.problems)
        self.origins = {
            dotted(path): f"{document.file}:{line}" for path, (line, _) in document.places.items()
        }

    def set(self, key: str, value: object, origin: str) -> None:
        """Put a value of the environment or of an option over the file's."""
        *blocks, name = key.split(".")
        place = self._data
        for block in blocks:
            below = place.setdefault(block, {})
            if not isinstance(below, dict):
                return  # a wrong type in the file, which validation tells
            place = below
        if key == "retention.successful_jobs.hours":
            place.pop("days", None)
        place[name] = value
        self.origins[key] = origin

    def get(self, key: str) -> Any:
        place: Any = self._data
        for name in key.split("."):
            if not isinstance(place, dict) or name not in place:
                return None
            place = place[name]
        return place

    def resolve_paths(self, environ: Mapping[str, str]) -> None:
        """Make all paths absolute: the file's from its folder, those of variables and options from cwd."""
        base_dir = environ.get(BASE_DIR)
        for key in _STORE_PATHS:
            if self.get(key) is None and base_dir:
                self.set(key, str(self._cwd / base_dir / _default(key)), BASE_DIR)
        for key in (*_STORE_PATHS, *_OTHER_PATHS):
            value = self.get(key)
            if isinstance(value, str) and "://" not in value:
                self._put(key, self._base(key) / value)
            elif value is None and key not in self.origins and _default(key) is not None:
                logs = self.get("paths.logs")
                if key in _IN_LOGS and isinstance(logs, str):
                    self._put(key, Path(logs) / _IN_LOGS[key])
                else:
                    self._put(key, self._file_base / _default(key))

    def _base(self, key: str) -> Path:
        from_file = self.origins.get(key, "").startswith(f"{self._document.file}:")
        return self._file_base if from_file else self._cwd

    def _put(self, key: str, path: Path) -> None:
        origin = self.origins.get(key)
        self.set(key, str(path), "default")
        if origin is None:
            del self.origins[key]
        else:
            self.origins[key] = origin

    def resolve_secrets(self, environ: Mapping[str, str]) -> None:
        """Replace ``${NAME}`` and ``…_file`` by the secret itself."""
        for key in _SECRETS:
            value, file = self.get(key), self.get(f"{key}_file")
            if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
                name = value[2:-1]
                if name not in environ:
                    self._problems.append(
                        f"{self._where(key)}: {key} names the variable {name}, which is not set"
                    )
                    continue
                self._put_secret(key, environ[name])
            elif isinstance(file, str):
                if value is not None:
                    self._problems.append(f"{self._where(key)}: {key} and {key}_file are both set; keep one")
                    continue
                credentials = Path(environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / file
                path = credentials if credentials.is_file() else self._file_base / file
                try:
                    self._put_secret(key, path.read_text(encoding="utf-8").strip())
                except (OSError, UnicodeDecodeError):
                    self._problems.append(f"{self._where(key)}: {key}_file: {path} cannot be read")

    def _put_secret(self, key: str, secret: str) -> None:
        self.set(key, secret, self.origins.get(key) or self.origins.get(f"{key}_file", "default"))

    def _where(self, key: str) -> str:
        origin = self.origins.get(key)
        if origin is not None and not origin.startswith(f"{self._document.file}:"):
            return origin
        return self._document.place(tuple(key.split(".")))

    def validate(self) -> Config:
        """Return the configuration, or raise ConfigError with every problem."""
        try:
            config = Config.model_validate(self._data)
        except ValidationError as error:
            self._problems += [self._words(detail) for detail in error.errors(include_url=False)]
        if self._problems:
            raise ConfigError("\n  ".join(["the configuration is wrong:", *dict.fromkeys(self._problems)]))
        return config

    def _words(self, detail: ErrorDetails) -> str:
        path = self._known_path(detail["loc"])
        key = dotted(path)
        where = self._where(key)
        if detail["type"] == "extra_forbidden":
            known = _keys_at(path[:-1])
            near = difflib.get_close_matches(str(path[-1]), known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            return f"{where}: {printable(key)}: unknown key; {meant}"
        message = detail["msg"].removeprefix("Value error, ")
        if any(key.startswith(secret) for secret in _SECRETS) or isinstance(detail["input"], dict):
            return f"{where}: {key}: {message}" if key else f"{where}: {message}"
        found = shortened(printable(repr(detail["input"])), 80)
        return f"{where}: {key}: {message[0].lower()}{message[1:]} (found {found})"

    def _known_path(self, loc: Path_) -> Path_:
        """Drop what pydantic adds for the branches of a union."""
        length = len(loc)
        while length > 1 and self._document.places.get(loc[:length]) is None and _has_no_key(loc[:length]):
            length -= 1
        return loc[:length]


def _consider(config: Config, origins: Mapping[str, str]) -> list[str]:
    """Warn of settings that this version cannot honour; refuse those that protect data."""
    for key, harmless, what in _REFUSED:
        value = _value(config, key)
        if value != harmless:
            raise ConfigError(
                f"{origins.get(key, key)}: {key} is set, but this version has no {what}; nothing is cleaned "
                f"without it: take the setting out, or wait for the version that has it"
            )
    return [
        f"{key} has no effect in this version: {what}"
        for key, harmless, what in _WITHOUT_EFFECT
        if key in origins and _value(config, key) != harmless
    ]


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _default(key: str) -> Any:
    model: Any = Config
    *blocks, name = key.split(".")
    for block in blocks:
        model = model.model_fields[block].annotation
    return model.model_fields[name].default


def _keys_at(path: Path_) -> list[str]:
    model: Any = Config
    for name in path:
        if isinstance(name, int):
            continue
        annotation = model.model_fields[name].annotation
        arguments = getattr(annotation, "__args__", ())
        model = next((a for a in (annotation, *arguments) if _is_model(a)), None)
        if model is None:
            return []
    return list(model.model_fields)


def _is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _has_no_key(path: Path_) -> bool:
    return isinstance(path[-1], str) and path[-1] not in _keys_at(path[:-1]) and not _is_block(path[:-1])


def _is_block(path: Path_) -> bool:
    return bool(_keys_at(path))


def _leaves(model: BaseModel, prefix: str) -> Iterator[tuple[str, object]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
