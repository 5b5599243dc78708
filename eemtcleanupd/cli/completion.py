"""Shell completion of ids and names: limited in number and time, without errors.

Completion reads what commands read, with the same configuration and the same rights, and changes nothing.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from itertools import islice
from typing import TYPE_CHECKING

import click

from eemtcleanupd.cli.common import load_config, open_ledger

if TYPE_CHECKING:
    from eemtcleanupd.config import Config

    Source = Callable[[Config, str], Iterable[str]]
    Completion = Callable[[click.Context, click.Parameter, str], list[str]]

_MOST = 50
_SECONDS = 3.0
# Users of the web interface choose ids.  A shell inserts a completed word unquoted, so an id could run
# a command, become an option, or end the line.
_HARMLESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./@+-]*")


def completion(source: Source) -> Completion:
    """Return a completion function that offers the words of ``source`` with the typed prefix.

    The source gets the configuration and the start of the word.
    """

    def complete(context: click.Context, _: click.Parameter, start: str) -> list[str]:
        words: list[str] = []

        def find() -> None:
            with suppress(Exception):
                found = (word for word in source(config, start) if word.startswith(start))
                words.extend(islice(filter(_HARMLESS.fullmatch, found), _MOST))

        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), suppress(Exception):
            import eemtcleanupd.store.ledger  # noqa: F401  (the most of what is imported)

            with context.scope(cleanup=False):
                config = load_config().config
            # The database can be locked, and the shell waits: a thread that is late ends with the process.
            thread = threading.Thread(target=find, name="completion", daemon=True)
            thread.start()
            thread.join(_SECONDS)
        return sorted(words)

    return complete


def _jobs(config: Config, start: str) -> Iterable[str]:
    from eemtcleanupd.policy.retention import Policy
    from eemtcleanupd.store.address import StoreAddress
    from eemtcleanupd.store.jobs import JobTable

    with closing(StoreAddress.of(config).open()) as database, database.read() as connection:
        jobs = JobTable(database, Policy.from_config(config.retention), zone=None)
        return jobs.ids_starting_with(connection, start, _MOST)


def _held_jobs(config: Config, _: str) -> Iterator[str]:
    with open_ledger(config) as ledger:
        yield from (hold.job_id for hold in ledger.all_holds())


def _acknowledged_jobs(config: Config, _: str) -> Iterator[str]:
    with open_ledger(config) as ledger:
        yield from (known.job_id for known in ledger.all_acknowledgements())


def _trashed_jobs(config: Config, _: str) -> Iterator[str]:
    with open_ledger(config) as ledger:
        for intent in ledger.trashed():
            yield from [intent.job_id] if intent.job_id else [found.label for found, _ in intent.items]


def _backed_up_jobs(config: Config, _: str) -> Iterable[str]:
    from eemtcleanupd.backup.folder import BackupFolder

    return {file.job_id for file in BackupFolder(config.backup.path).all()}


def _runs(config: Config, start: str) -> Iterator[str]:
    with open_ledger(config) as ledger:
        yield from (run.id for run in ledger.runs(_MOST, start))


def _tokens(config: Config, _: str) -> Iterable[str]:
    from eemtcleanupd.web.tokens import TokenFile

    file = config.api.tokens_file
    return () if file is None else (token.name for token in TokenFile(file).all())


def _notifiers(config: Config, _: str) -> Iterable[str]:
    return (name for name, settings in config.notifications if getattr(settings, "enabled", False))


jobs = completion(_jobs)
held_jobs = completion(_held_jobs)
acknowledged_jobs = completion(_acknowledged_jobs)
trashed_jobs = completion(_trashed_jobs)
backed_up_jobs = completion(_backed_up_jobs)
runs = completion(_runs)
tokens = completion(_tokens)
notifiers = completion(_notifiers)


def jobs_to_acknowledge(context: click.Context, option: click.Parameter, start: str) -> list[str]:
    """Complete the jobs of ``acknowledge``; with ``--remove``, those that are acknowledged."""
    complete = acknowledged_jobs if context.params.get("remove") else jobs
    return complete(context, option, start)
