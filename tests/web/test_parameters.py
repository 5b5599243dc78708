"""Parameters that no database can store are refused with the parameter named, on every database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from tests.cleanup.conftest import JobStore
from tests.postgres import Server
from tests.web.conftest import Site, site_of

pytestmark = pytest.mark.xdist_group("parameters")
PARAMETERS = {
    "/jobs": ("q", "after"),
    "/job": ("job_id",),
    "/trash": ("q", "after"),
    "/runs": ("before",),
    "/runs/{}": (),
    "/audit": ("q", "before"),
    "/plan": ("number",),
    "/hold": ("job",),
    "/release": ("job",),
    "/restore": ("job",),
    "/api/cleanup/runs": ("limit",),
    "/api/cleanup/runs/{}": ("limit",),
    "/api/cleanup/jobs/{}": (),
    "/api/cleanup/trash": ("limit",),
}
ADDRESSES = [(path.format("x"), name) for path, names in PARAMETERS.items() for name in names] + [
    (path, None) for path in PARAMETERS if "{}" in path
]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, config, url = tmp_path_factory.mktemp("parameters") / "store", "", None
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgres_server")
        url = server.create(ENCODING="'UTF8'")
        config = f"paths: {{database: '{url}'}}\n"
    store = JobStore(folder, now=datetime.now(UTC), url=url)
    store.job("a")
    with site_of(store, config) as site:
        site.client.post("/api/cleanup", headers=site.bearer("clean"))
        yield site


def status_of(site: Site, path: str, name: str | None, value: str) -> int:
    address = path.format(value) if name is None else f"{path}?{name}={value}"
    return site.client.get(address, headers=site.bearer("clean")).status_code


@pytest.mark.fast_parameters(6)
@pytest.mark.parametrize(("path", "name"), ADDRESSES)
def test_a_parameter_that_cannot_be_stored_is_refused(site: Site, path: str, name: str | None) -> None:
    for value in ("%00", "a%00b", "%ff", "%ed%a0%80"):
        assert status_of(site, path, name, value) == 422, value


@pytest.mark.fast_parameters(6)
@pytest.mark.parametrize(("path", "name"), ADDRESSES)
def test_any_other_parameter_is_understood_or_refused(site: Site, path: str, name: str | None) -> None:
    values = ["x", "", "-1", str(2**63), "9" * 5000, "\U0001f600", "%", '"\\udc80"', '"\\u0000"', "x" * 3000]
    for value in values:
        assert status_of(site, path, name, quote(value)) in {200, 404, 409, 422}, value


@pytest.mark.parametrize("path", ["/hold", "/release", "/restore"])
@pytest.mark.parametrize("job", ["\0", '"\\u0000"', '"\\ud800"', "a\0", '"\\udc80"'])
def test_a_form_with_such_an_id_changes_nothing(site: Site, path: str, job: str) -> None:
    answer = site.client.post(path, data={"job": job}, headers=site.bearer("clean"))
    assert answer.status_code in {404, 409, 422}


@pytest.mark.parametrize("show", ["all", "data", "cleaned", "held", "attention"])
def test_each_filter_of_the_jobs_works_on_every_database(site: Site, show: str) -> None:
    assert site.jobs(f"/jobs?show={show}") == (["a"] if show in {"all", "cleaned"} else [])
