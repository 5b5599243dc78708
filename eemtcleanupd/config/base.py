"""The base model of all blocks of the configuration, and functions that inspect its fields."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo

from eemtcleanupd.config.types import DatabaseAddress


class Section(BaseModel):
    """A block of the file. Unknown keys are errors, and an empty block has its defaults."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        defer_build=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_blocks(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        given = {
            key: value
            for key, value in data.items()
            if value is not None or key not in fields or not is_block(fields[key])
        }
        # A missing block is validated as an empty one by the validator of the whole file. Its
        # default_factory would build a validator of its own, which takes most of the loading time.
        empty: dict[str, Any] = {
            key: {}
            for key, field in fields.items()
            if key not in given
            and field.default_factory is field.annotation
            and block_of(field) is field.annotation
        }
        return {**given, **empty}


def leaves(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key that is not a block, dotted, with its field, in the order of the schema."""
    for name, field in model.model_fields.items():
        section = block_of(field)
        if section is None or not is_block(field):
            yield prefix + name, field
        else:
            yield from leaves(section, f"{prefix}{name}.")


def configured_paths(section: BaseModel) -> Iterator[Path]:
    """Yield every path that a configuration names, files of secrets and Unix sockets included."""
    for _, value in section:
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, BaseModel):
                yield from configured_paths(item)
            elif isinstance(item, Path):
                yield item
            elif isinstance(item, DatabaseAddress) and item.file is not None:
                yield item.file
            elif isinstance(item, str) and item.startswith("unix:/"):
                yield Path(item.removeprefix("unix:"))


def is_block(field: FieldInfo) -> bool:
    """Return whether a field is a block with keys of its own."""
    return block_of(field) is not None and (field.default_factory is not None or is_optional_block(field))


def is_optional_block(field: FieldInfo) -> bool:
    """Return whether a field is a block that can be absent because it has keys without a default."""
    kinds = get_args(field.annotation)
    return len(kinds) == 2 and NoneType in kinds and block_of(field) in kinds


def block_of(field: FieldInfo) -> type[Section] | None:
    """Return the model of a block, or of the entries of a list of blocks. Return None for other fields."""
    return next((kind for kind in _types(field.annotation) if issubclass(kind, Section)), None)


def holds(field: FieldInfo, kind: type) -> bool:
    """Return whether the values of a field are of a type, or lists of it."""
    return kind in set(_types(field.annotation))


def _types(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for part in get_args(annotation):
        yield from _types(part)
