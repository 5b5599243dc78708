"""``eemtcleanupd backup``: the copies that were made before jobs went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eemtcleanupd.cli.common import config_option, load_config
from eemtcleanupd.cli.trash import print_restored, restore_options, restoring
from eemtcleanupd.errors import BackupError
from eemtcleanupd.formatting import human_size, printable

if TYPE_CHECKING:
    from eemtcleanupd.backup.folder import BackupFile, BackupFolder

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def backup() -> None:
    """List, verify or restore the backups of jobs (see backup.enabled)."""


def _folder(config_file: Path | None) -> BackupFolder:
    config = load_config(config_file).config
    from eemtcleanupd.backup.folder import BackupFolder

    return BackupFolder(config.backup.path)


@backup.command("list")
@click.argument("job_id", metavar="[JOB]", required=False)
@config_option
@json_option
def list_(job_id: str | None, config_file: Path | None, as_json: bool) -> None:
    """List the backups, of JOB or all, the oldest first."""
    backups = _folder(config_file).all(job_id)
    if as_json:
        click.echo(json.dumps([_document(each) for each in backups], indent=2))
        return
    for each in backups:
        click.echo(
            f"{printable(each.job_id)} ({each.made_at.astimezone():%Y-%m-%d %H:%M}, "
            f"{human_size(each.size_bytes)}): {each.path.name}"
        )
    if not backups:
        click.echo("There are no backups" + (f" of job {printable(job_id)}." if job_id else "."))


def _document(each: BackupFile) -> dict[str, Any]:
    return {
        "job_id": each.job_id,
        "name": each.path.name,
        "made_at": each.made_at.isoformat(),
        "bytes": each.size_bytes,
    }


@backup.command()
@click.argument("job_id", metavar="[JOB]", required=False)
@config_option
@json_option
def verify(job_id: str | None, config_file: Path | None, as_json: bool) -> int:
    """Read the backups, of JOB or all, to their end and compare them with their manifests."""
    from eemtcleanupd.backup import archive

    folder = _folder(config_file)
    results = []
    for each in folder.all(job_id):
        try:
            contents = archive.verify(each.path)
            results.append({**_document(each), "ok": True, "files": contents.files})
            words = f"ok, {contents.files} files, {human_size(contents.bytes)}"
        except BackupError as error:
            results.append({**_document(each), "ok": False, "error": str(error)})
            words = f"NOT OK: {error}"
        if not as_json:
            click.echo(f"{each.path.name}: {words}")
    if as_json:
        click.echo(json.dumps(results, indent=2))
    elif not results:
        click.echo("There are no backups" + (f" of job {printable(job_id)}." if job_id else "."))
    return 0 if all(each["ok"] for each in results) else 1


@backup.command()
@click.option("--backup", "name", metavar="NAME", help="The backup, as list shows it; without: the newest.")
@restore_options
def restore(  # noqa: PLR0917  (click passes them by name)
    job_id: str,
    only: tuple[str, ...],
    no_hold: bool,
    config_file: Path | None,
    db_path: str | None,
    as_json: bool,
    name: str | None,
) -> None:
    """Put the data of JOB back from its backup, never over something that is there now.

    The job counts as not cleaned again, and is held for its retention once more, counted from now.
    """
    config = load_config(config_file, {"paths.database": (db_path, "--db-path")}).config
    from eemtcleanupd.backup.folder import BackupFolder
    from eemtcleanupd.cleanup.restore import restore_backup

    backups = BackupFolder(config.backup.path).all(job_id)
    chosen = [each for each in backups if name is None or each.path.name == name]
    if not chosen:
        which = "no backup" if name is None else f"no backup {printable(name)}"
        raise BackupError(f"there is {which} of job {printable(job_id)} in {config.backup.path}")
    request = restoring(config, job_id, only, hold=not no_hold)
    print_restored(restore_backup(request, chosen[-1].path), as_json=as_json)
