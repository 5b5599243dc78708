"""A PostgreSQL server for the tests, from the binaries that Debian installs outside of PATH."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.ports import free_port

ROLE = "eemt"
PASSWORD = "p@ss/w:rd"
QUOTED = "p%40ss%2Fw%3Ard"
_SETTINGS = """
fsync = off
synchronous_commit = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
autovacuum = off
jit = off
max_connections = 60
shared_buffers = 16MB
"""
_SESSION = "session of a test"
_EMPTY = f"""
SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    LOOP EXECUTE format('DROP SCHEMA %I CASCADE', name); END LOOP;
    EXECUTE format('ALTER DATABASE %I RESET ALL', current_database());
    EXECUTE format('ALTER DATABASE %I OWNER TO {ROLE}', current_database());
END $$;
CREATE SCHEMA public AUTHORIZATION {ROLE};
GRANT USAGE ON SCHEMA public TO PUBLIC;
"""


def binaries() -> Path:
    """Return the folder with the programs of the newest server; skip the test where there is none."""
    if (initdb := shutil.which("initdb")) is not None:
        return Path(initdb).resolve().parent
    folders = list(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.skip("needs PostgreSQL's initdb")
    return max(folders, key=lambda folder: float(folder.parent.name))


@dataclass
class Server:
    """A server on the loopback interface.  ROLE owns every database and is not a superuser."""

    folder: Path
    port: int
    numbers: Iterator[int] = field(default_factory=count)
    unused: list[str] = field(default_factory=list)
    """Empty databases."""
    used: list[str] = field(default_factory=list)

    def url(self, database: str, role: str = f"{ROLE}:{QUOTED}") -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    def admin(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Execute a statement as the superuser."""
        with psycopg.connect(self.url(database, "postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def create(self, **options: str) -> str:
        """Create an empty database, and return its URL."""
        if self.unused and not options:
            name = self.unused.pop()
        else:
            name = f"test_{next(self.numbers)}"
            extra = " ".join(f"{option} {value}" for option, value in options.items())
            self.admin(f"CREATE DATABASE {name} OWNER {ROLE} {extra}")
        if not options:
            self.used.append(name)
        return self.url(name)

    def empty(self) -> None:
        """Empty the used databases, because creating one writes hundreds of files."""
        while self.used:
            name = self.used.pop()
            if (kept := _sessions.pop(self.url(name), None)) is not None:
                kept.close()
            self.admin(_EMPTY, name)
            self.unused.append(name)

    def disconnect(self, url: str, which: str = "true") -> int:
        """End connections to a database, as a restart of the server does, and return their number."""
        name = url.rpartition("/")[2]
        return len(
            self.admin(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
                f" WHERE datname = '{name}' AND usename = '{ROLE}' AND application_name <> '{_SESSION}'"
                f" AND {which}"
            )
        )


def session(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    """Return a connection to a database that stays open until the database is emptied."""
    if url not in _sessions:
        _sessions[url] = psycopg.connect(
            url, autocommit=True, prepare_threshold=None, application_name=_SESSION
        )
    return _sessions[url]


_sessions: dict[str, psycopg.Connection[tuple[Any, ...]]] = {}


@contextmanager
def running_server() -> Iterator[Server]:
    """Run a server.  As root, run it as user postgres, because the server refuses to run as root."""
    programs = binaries()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    user = "postgres" if os.geteuid() == 0 else None
    data = folder / "data"
    if user is not None:
        shutil.chown(folder, user)
    options: dict[str, Any] = {"user": user, "cwd": folder, "capture_output": True}
    if user is not None:
        options |= {"group": user, "extra_groups": []}
    try:
        initdb = f"{programs}/initdb -D {data} -U postgres -A trust --no-sync -E UTF8 --locale=C.UTF-8"
        subprocess.run(initdb.split(), check=True, **options)
        (data / "pg_hba.conf").write_text(
            f"host all {ROLE} 127.0.0.1/32 scram-sha-256\nhost all postgres 127.0.0.1/32 trust\n"
            "host all owner 127.0.0.1/32 trust\nlocal all all trust\n"
        )
        with (data / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS)
        port = _start(programs, folder, data, options)
        server = Server(folder, port)
        server.admin(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{_verifier()}'")
        server.admin("CREATE ROLE owner LOGIN")
        try:
            yield server
        finally:
            stop = f"{programs}/pg_ctl -D {data} -m immediate stop"
            subprocess.run(stop.split(), check=False, **options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(programs: Path, folder: Path, data: Path, options: dict[str, Any]) -> int:
    """Start the server, and return its port."""
    port = free_port()
    settings = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    command = [*f"{programs}/pg_ctl -D {data} -w -l {folder}/log start -o".split(), settings]
    if subprocess.run(command, check=False, **options).returncode != 0:
        raise RuntimeError((folder / "log").read_text())
    return port


def _verifier() -> str:
    """Return what the server stores of PASSWORD; the usual 4,096 iterations take longer than a query."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt, iterations=1)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(each).decode() for each in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256$1:{salt64}${stored64}:{server64}"
