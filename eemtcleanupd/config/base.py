"""What all blocks of the file are: models that refuse what they do not know, and how to look into them."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A block of the file: unknown keys are errors, an empty block has its defaults."""

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
        # A block that is not given is read as one without keys, by the validator of the whole file. Its
        # default_factory would have one built for the block alone, and that is most of what loading takes.
        empty: dict[str, Any] = {
            key: {} for key, field in fields.items() if key not in given and _is_made_of_defaults(field)
        }
        return {**given, **empty}


def leaves(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key below a block that is not a block itself, dotted, in the order of the schema."""
    for name, field in model.model_fields.items():
        block = block_of(field)
        if block is None or not is_block(field):
            yield prefix + name, field
        else:
            yield from leaves(block, f"{prefix}{name}.")


def is_block(field: FieldInfo) -> bool:
    """Tell whether a field is a block, whose keys are looked at one by one."""
    return block_of(field) is not None and (field.default_factory is not None or is_optional_block(field))


def _is_made_of_defaults(field: FieldInfo) -> bool:
    """Tell whether a block that is not given is one without keys."""
    return field.default_factory is field.annotation and block_of(field) is field.annotation


def is_optional_block(field: FieldInfo) -> bool:
    """Tell whether a field is a block that may be absent, for it has keys without a default."""
    kinds = get_args(field.annotation)
    return len(kinds) == 2 and NoneType in kinds and block_of(field) in kinds


def block_of(field: FieldInfo) -> type[Section] | None:
    """Return the model of a block, or of the entries of a list of blocks; None for any other field."""
    return next((kind for kind in _kinds(field.annotation) if issubclass(kind, Section)), None)


def holds(field: FieldInfo, kind: type) -> bool:
    """Tell whether a field's value is of a kind (or null), or a list of that kind."""
    return kind in set(_kinds(field.annotation))


def _kinds(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)
