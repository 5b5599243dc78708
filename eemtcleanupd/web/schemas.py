"""What comes in and goes out below ``/api/cleanup``, as OpenAPI has it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema


def storable(value: object) -> str:
    """Return text that every database takes.

    Names that are not UTF-8 come as lone escapes, which pydantic's own type of text refuses.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str):
        raise ValueError("it is not text")  # noqa: TRY004  (what pydantic asks for)
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("it has a character that is none") from None
    if "\0" in value:
        raise ValueError("it has a NUL")
    if len(value) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST} characters")
    return value


def _named(value: object) -> str:
    name = storable(value)
    if not name:
        raise ValueError("it is empty")
    return name


_LONGEST = 1000
_SCHEMA: dict[str, Any] = {"type": "string", "maxLength": _LONGEST, "pattern": r"^[^\u0000]*$"}
Text = Annotated[str, PlainValidator(storable), WithJsonSchema(_SCHEMA)]
JobId = Annotated[str, PlainValidator(_named), WithJsonSchema({**_SCHEMA, "minLength": 1})]
Hours = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CleanupBody(_Body):
    """What a run is to do; all of it may be left out."""

    dry_run: bool = Field(False, description="Only say what would be cleaned.", examples=[True])
    success_retention_hours: Hours | None = Field(
        None, description="Hours for successful jobs, in place of the configured ones.", examples=[168]
    )
    failed_retention_hours: Hours | None = Field(
        None, description="Hours for failed jobs, in place of the configured ones.", examples=[12]
    )
    force: bool = Field(False, description="Override the breakers (clock, share of jobs); no other rule.")


class JobCounts(BaseModel):
    """How many jobs."""

    successful: int = Field(examples=[3])
    failed: int = Field(examples=[2])


class Space(BaseModel):
    """How much space."""

    bytes: int = Field(examples=[48318382080])
    human_readable: str = Field(examples=["45.0 GB"])


class Detail(BaseModel):
    """A job that was cleaned, or would be."""

    model_config = ConfigDict(extra="allow")

    job_id: str = Field(examples=["job-20240115-123456"])
    status: str = Field(examples=["completed"])
    age_days: float | None = Field(examples=[8.2])
    space_freed: str = Field(examples=["15.0 GB"])


class CleanupAnswer(BaseModel):
    """What a run did, or would do."""

    model_config = ConfigDict(extra="allow")

    success: bool
    run_id: str = Field(examples=["20240120T020001-3f2a"])
    dry_run: bool
    cleaned_jobs: JobCounts
    space_freed: Space
    details: list[Detail]


class RunAccepted(BaseModel):
    """A run that goes on."""

    run_id: str = Field(examples=["20240120T020001-3f2a"])
    url: str = Field(examples=["/api/cleanup/runs/20240120T020001-3f2a"])


class HoldBody(_Body):
    """A job that must stay."""

    job_id: JobId = Field(examples=["job-20240115-123456"])
    reason: Annotated[str, AfterValidator(storable), WithJsonSchema(_SCHEMA)] = ""
    hours: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] | None = Field(
        None, description="How long; without: for ever."
    )


class ReleaseBody(_Body):
    """A job that need not stay any more."""

    job_id: JobId = Field(examples=["job-20240115-123456"])


class RestoreBody(_Body):
    """A job whose data is to come back from the trash."""

    job_id: JobId = Field(examples=["job-20240115-123456"])
    only: list[Text] = Field(
        default_factory=list, max_length=100, examples=[["results/job-20240115-123456/"]]
    )
    hold: bool = Field(True, description="Keep it for its retention once more.")
