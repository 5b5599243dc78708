"""``eemtcleanupd backup``: list, verify and restore the backups made before jobs are deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from eemtcleanupd.cli import completion
from eemtcleanupd.cli.common import (
    complete_among,
    config_option,
    echo_line,
    examples,
    json_option,
    load_config,
    print_json,
    quiet_option,
)
from eemtcleanupd.cli.groups import CommandGroup
from eemtcleanupd.cli.trash import print_restored, restore_options, restore_request
from eemtcleanupd.errors import BackupError
from eemtcleanupd.formatting import human_size, local_minute, plural, printable

if TYPE_CHECKING:
    from eemtcleanupd.backup.folder import BackupFile, BackupFolder
    from eemtcleanupd.config import Config


@click.group(cls=CommandGroup)
def backup() -> None:
    """List, verify or restore backups of jobs (see backup.enabled)."""


def _folder(config: Config) -> BackupFolder:
    from eemtcleanupd.backup.folder import BackupFolder

    return BackupFolder(config.backup.path)


def _complete(config: Config, folder: BackupFolder, given: str | None) -> str | None:
    """Complete the id of a job with backups; return it unchanged if none matches."""
    states = {file.job_id: f"last backup {local_minute(file.made_at)}" for file in folder.all()}
    return given and (complete_among(config, given, states, "jobs with backups") or given)


@backup.command("list", epilog=examples("backup list", "backup list 32ffd03d"))
@click.argument("job_id", metavar="[JOB]", required=False, shell_complete=completion.backed_up_jobs)
@config_option
@json_option
def list_(job_id: str | None, as_json: bool) -> None:
    """List all backups, or those of JOB, oldest first."""
    config = load_config().config
    folder = _folder(config)
    job_id = _complete(config, folder, job_id)
    backups = folder.all(job_id)
    if as_json:
        print_json([_document(file) for file in backups])
        return
    for file in backups:
        details = f"{local_minute(file.made_at)}, {human_size(file.size_bytes)}"
        echo_line(f"{printable(file.job_id)} ({details}): {file.path.name}", indent=2)
    if not backups:
        _print_no_backups(folder, job_id)


def _print_no_backups(folder: BackupFolder, job_id: str | None) -> None:
    job = f" of job {printable(job_id)}" if job_id else ""
    where = "" if folder.path.exists() else f": the folder {folder.path} does not exist"
    echo_line(f"There are no backups{job}{where}.")


def _document(file: BackupFile) -> dict[str, Any]:
    return {"job_id": file.job_id, "name": file.path.name, "made_at": file.made_at, "bytes": file.size_bytes}


@backup.command(epilog=examples("backup verify", "backup verify 32ffd03d --quiet"))
@click.argument("job_id", metavar="[JOB]", required=False, shell_complete=completion.backed_up_jobs)
@quiet_option
@config_option
@json_option
def verify(job_id: str | None, quiet: bool, as_json: bool) -> int:
    """Read all backups, or those of JOB, completely and compare them with their manifests.

    It is an error if JOB has no backup.
    """
    from eemtcleanupd.backup import archive

    results = []
    config = load_config().config
    folder = _folder(config)
    job_id = _complete(config, folder, job_id)
    for file in folder.all(job_id):
        try:
            contents = archive.verify(file.path)
            results.append({**_document(file), "ok": True, "files": contents.files})
            verdict = f"ok, {plural(contents.files, 'file')}, {human_size(contents.bytes)}"
        except BackupError as error:
            results.append({**_document(file), "ok": False, "error": str(error)})
            verdict = f"NOT OK: {error}"
        if not as_json and not (quiet and results[-1]["ok"]):
            echo_line(f"{file.path.name}: {verdict}", indent=2)
    if as_json:
        print_json(results)
    elif not results and not (quiet and job_id is None):
        _print_no_backups(folder, job_id)
    is_missing = job_id is not None and not results
    return 1 if is_missing or not all(result["ok"] for result in results) else 0


@backup.command(epilog=examples("backup restore 32ffd03d", "backup restore 32ffd03d --only results/32ffd03d"))
@click.option(
    "--backup",
    "name",
    metavar="NAME",
    help="Backup to restore, as printed by list (default: the newest backup of each artifact).",
)
@restore_options(completion.backed_up_jobs)
def restore(job_id: str, only: tuple[str, ...], no_hold: bool, as_json: bool, name: str | None) -> int:
    """Restore the data of JOB from its backups; existing files are never overwritten.

    The command marks the job as not cleaned and holds it for one retention period.
    """
    config = load_config().config
    from eemtcleanupd.cleanup.restore import restore_backup

    folder = _folder(config)
    job_id = _complete(config, folder, job_id) or job_id
    backups = folder.all(job_id)
    candidates = [file for file in backups if name is None or file.path.name == name]
    if not candidates:
        which = "no backup" if name is None else f"no backup {printable(name)}"
        raise BackupError(
            f"There is {which} of job {printable(job_id)} in {config.backup.path}. "
            "List the backups with `eemtcleanupd backup list`."
        )
    request = restore_request(config, job_id, only, hold=not no_hold)
    return print_restored(restore_backup(request, [file.path for file in candidates]), as_json=as_json)
