"""What is known of one job: its row as it stands, and whether a hold on it comes too late."""

from __future__ import annotations

from eemtcleanupd.config import Config
from eemtcleanupd.errors import StoreError
from eemtcleanupd.formatting import printable
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.jobs import JobTable, Row
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.timestamps import zone_named


def find_row(config: Config, job_id: str) -> Row | None:
    """Return the row of a job as it stands, None when there is none.

    Raises:
        StoreError: the database cannot be used.
    """
    database = StoreAddress.of(config).open()
    try:
        catalog = JobTable(
            database, Policy.from_config(config.retention), zone_named(config.database.timezone)
        )
        with database.read() as connection:
            return catalog.rows(connection, [job_id]).get(job_id)
    finally:
        database.close()


def hold_warning(config: Config, ledger: Ledger, job_id: str) -> str | None:
    """Return why a hold does not keep what it is meant to keep, None when it does.

    To be asked after the hold is set: a run that did not see it has left its trace by then.  So a job table
    that cannot be read is a reason too, and no error: the hold is in force.
    """
    name = printable(job_id)
    try:
        row = find_row(config, job_id)
    except StoreError as error:
        return f"whether that is in time could not be found out: {error}"
    if row is None:
        return f"there is no job {name} in the database: is that its id?"
    if any(intent.job_id == job_id for intent in ledger.open_intents()):
        return f"a run had begun to clean job {name}, and may not have seen the hold: look at it again"
    if ledger.trashed(job_id):
        return f"job {name} is in the trash, and stays there while it is held: trash restore brings it back"
    return f"the data of job {name} has been cleaned already" if row.cleaned else None
