"""``eemtcleanupd rerun``: a job again, from its preserved configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eemtcleanupd.cli.common import caller, load_config, store_options
from eemtcleanupd.clock import system_clock
from eemtcleanupd.errors import RerunError
from eemtcleanupd.formatting import printable, shortened

if TYPE_CHECKING:
    from eemtcleanupd.model import Job

# The form fields of the web interface's POST /api/submit-job that a job's parameters may hold.
_FIELDS = ("step", "linke_value", "albedo_value", "num_threads", "start_year", "end_year")
_TIMEOUT_SECONDS = 600


@click.command()
@click.argument("job", metavar="JOB", required=False)
@click.option("--job-id", metavar="JOB", help="The same as the argument JOB.")
@click.option(
    "--dem",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Elevation model to upload, where the job's own is gone.",
)
@click.option(
    "--url", default="http://localhost:5000", show_default=True, help="Where the EEMT web interface is."
)
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rerun(  # noqa: PLR0917  (click passes them by name)
    job: str | None,
    job_id: str | None,
    dem: Path | None,
    url: str,
    config_file: Path | None,
    db_path: str | None,
    as_json: bool,
) -> None:
    """Submit JOB again to the EEMT web interface, with the parameters that its row has kept."""
    wanted = job or job_id
    if wanted is None or (job and job_id and job != job_id):
        raise click.UsageError("say which job: rerun JOB")
    from eemtcleanupd.cleanup.session import find_row

    config = load_config(config_file, {"paths.database": (db_path, "--db-path")}).config
    row = find_row(config, wanted)
    if row is None:
        raise RerunError(f"the job database has no job {printable(wanted)}")
    kept = row.job
    form = _form(kept)
    if dem is None and (kept.dem_filename is None or not (config.paths.uploads / kept.dem_filename).exists()):
        raise RerunError(
            f"the upload {printable(kept.dem_filename or '(none)')} of job {printable(wanted)} is gone: "
            "name its elevation model with --dem FILE"
        )
    from eemtcleanupd.events import AuditEntry
    from eemtcleanupd.plugins import Plugins

    details = {"job_id": printable(wanted), "url": url, "dem": None if dem is None else printable(str(dem))}
    plugins = Plugins(config)
    plugins.audit([AuditEntry(system_clock(), caller(), "rerun_requested", details)])
    base = url.rstrip("/")
    name = kept.dem_filename if dem is None else _upload(base, dem)
    answer = _post(f"{base}/api/submit-job", data={**form, "uploaded_filename": name})
    new = answer.get("job_id") or answer.get("id")
    done = {**details, "new_job_id": printable(str(new))}
    plugins.audit([AuditEntry(system_clock(), caller(), "rerun", done)])
    if as_json:
        click.echo(json.dumps({"job_id": wanted, "new_job_id": new, "answer": answer}, indent=2))
    else:
        click.echo(f"Job {printable(wanted)} was submitted again as {printable(str(new))}")


def _form(job: Job) -> dict[str, str]:
    """Return the fields of the form; a parameter that the interface does not know is left out."""
    try:
        parameters = json.loads(job.parameters or "{}")
    except ValueError:
        parameters = None
    if not isinstance(parameters, dict):
        raise RerunError(f"the parameters of job {printable(job.id)} cannot be read")
    known = {name: str(parameters[name]) for name in _FIELDS if parameters.get(name) is not None}
    return {"workflow_type": job.workflow_type or "sol", **known}


def _upload(base: str, dem: Path) -> str:
    from requests_toolbelt import MultipartEncoder

    with dem.open("rb") as stream:
        body = MultipartEncoder({"file": (dem.name, stream, "application/octet-stream")})
        answer = _post(f"{base}/api/upload-file", data=body, headers={"Content-Type": body.content_type})
    name = answer.get("filename") or answer.get("uploaded_filename")
    if not isinstance(name, str):
        raise RerunError("the web interface took the upload, but did not say under which name")
    return name


def _post(url: str, *, data: Any, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    import requests

    try:
        response = requests.post(url, data=data, headers=headers, timeout=_TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise RerunError(
            f"the EEMT web interface at {url} cannot be reached ({type(error).__name__}); name it with --url"
        ) from error
    if not response.ok:
        said = shortened(printable(response.text.strip()), 300)
        raise RerunError(f"the EEMT web interface refused {url}: {response.status_code} {said}")
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RerunError(f"{url} did not answer as the EEMT web interface does: is it the right URL?")
    return answer
