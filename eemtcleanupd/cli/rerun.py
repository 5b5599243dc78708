"""``eemtcleanupd rerun``: submit a job again with its stored parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eemtcleanupd.cli import completion
from eemtcleanupd.cli.common import (
    examples,
    json_option,
    load_config,
    print_json,
    setting_option,
    store_options,
    write_audit,
)
from eemtcleanupd.errors import IdError, RerunError
from eemtcleanupd.formatting import printable, shortened

if TYPE_CHECKING:
    from eemtcleanupd.model import Job

# The form fields of the web interface's POST /api/submit-job that a job's parameters can contain.
_FIELDS = ("step", "linke_value", "albedo_value", "num_threads", "start_year", "end_year")
_SUBMIT, _UPLOAD = "/api/submit-job", "/api/upload-file"
_TIMEOUT_SECONDS = 600


@click.command(epilog=examples("rerun 32ffd03d --dry-run", "rerun 32ffd03d --url http://localhost:5000"))
@click.argument("job", metavar="JOB", required=False, shell_complete=completion.jobs)
@click.option("--job-id", metavar="JOB", help="Job to submit again (same as the argument JOB).")
@click.option(
    "--dem",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Elevation model to upload (default: the job's own upload).",
)
@setting_option(
    "web_interface.url", "--url", "URL", "Base URL of the EEMT web interface (default: web_interface.url)."
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be sent without sending it.")
@store_options
@json_option
def rerun(job: str | None, job_id: str | None, dem: Path | None, dry_run: bool, as_json: bool) -> None:
    """Submit JOB again to the EEMT web interface with the parameters stored in its row.

    JOB is an id or the start of one.
    """
    wanted = job or job_id
    if wanted is None or (job and job_id and job != job_id):
        raise click.UsageError("Give exactly one job: eemtcleanupd rerun JOB")
    from eemtcleanupd.cleanup.session import find_job_id, find_row, unknown_job

    config = load_config().config
    wanted = find_job_id(config, wanted) or wanted
    base = config.web_interface.url
    if base is None:
        raise click.UsageError(
            "The address of the EEMT web interface is not configured. Give it with --url, such as "
            "--url http://localhost:5000, or set web_interface.url."
        )
    row = find_row(config, wanted)
    if row is None:
        raise IdError(unknown_job(config, wanted))
    stored = row.job
    form = _form(stored)
    upload = stored.dem_filename
    if dem is None and (upload is None or not (config.paths.uploads / upload).exists()):
        raise RerunError(
            f"Upload {printable(upload or '(none)')} of job {printable(wanted)} does not exist. "
            "Give an elevation model with --dem FILE."
        )
    if dry_run:
        _show(wanted, base, form, upload, dem, as_json=as_json)
        return
    from eemtcleanupd.plugins import Plugins

    details = {"job_id": printable(wanted), "url": base, "dem": None if dem is None else printable(str(dem))}
    plugins = Plugins(config)
    write_audit(plugins, "rerun_requested", **details)
    uploaded_filename = upload if dem is None else _upload(base, dem)
    answer = _post(base + _SUBMIT, data={**form, "uploaded_filename": uploaded_filename})
    new_id = answer.get("job_id") or answer.get("id")
    write_audit(plugins, "rerun", **details, new_job_id=printable(str(new_id)))
    if as_json:
        print_json({"job_id": wanted, "new_job_id": new_id, "answer": answer})
    else:
        click.echo(f"Submitted job {printable(wanted)} again as {printable(str(new_id))}.")


def _show(
    job_id: str, base: str, form: Mapping[str, str], upload: str | None, dem: Path | None, *, as_json: bool
) -> None:
    """Print the requests of a rerun.  The name of a new upload is unknown until it was sent (None)."""
    requests: list[dict[str, Any]] = []
    if dem is not None:
        requests.append({"method": "POST", "url": base + _UPLOAD, "file": str(dem)})
    uploaded_filename = upload if dem is None else None
    fields = {**form, "uploaded_filename": uploaded_filename}
    requests.append({"method": "POST", "url": base + _SUBMIT, "form": fields})
    if as_json:
        print_json({"job_id": job_id, "dry_run": True, "requests": requests})
        return
    for request in requests:
        click.echo(f"[DRY RUN] Would send: {request['method']} {request['url']}")
        for name, value in request.get("form", {"file": request.get("file")}).items():
            shown = "(the name that the upload returns)" if value is None else printable(value)
            click.echo(f"[DRY RUN]   {name}: {shown}")


def _form(job: Job) -> dict[str, str]:
    """Return the form fields for a job; parameters unknown to the interface are omitted."""
    try:
        parameters = json.loads(job.parameters or "{}")
    except (ValueError, RecursionError):
        parameters = None
    if not isinstance(parameters, dict):
        raise RerunError(f"The stored parameters of job {printable(job.id)} are not valid JSON.")
    known = {name: str(parameters[name]) for name in _FIELDS if parameters.get(name) is not None}
    return {"workflow_type": job.workflow_type or "sol", **known}


def _upload(base: str, dem: Path) -> str:
    from requests_toolbelt import MultipartEncoder

    with dem.open("rb") as stream:
        body = MultipartEncoder({"file": (dem.name, stream, "application/octet-stream")})
        answer = _post(base + _UPLOAD, data=body, headers={"Content-Type": body.content_type})
    name = answer.get("filename") or answer.get("uploaded_filename")
    if not isinstance(name, str):
        raise RerunError("The EEMT web interface accepted the upload but returned no file name.")
    return name


def _post(url: str, *, data: Any, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    import requests

    try:
        response = requests.post(url, data=data, headers=headers, timeout=_TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise RerunError(
            f"The EEMT web interface at {url} cannot be reached ({type(error).__name__}). "
            "Correct --url or web_interface.url."
        ) from error
    if not response.ok:
        text = shortened(printable(response.text.strip()), 300)
        raise RerunError(f"The EEMT web interface rejected {url}: {response.status_code} {text}")
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise RerunError(
            f"{url} did not return a JSON object. Is --url the address of the EEMT web interface?"
        )
    return answer
