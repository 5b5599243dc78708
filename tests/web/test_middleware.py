"""Which names of the server a request can use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.web.conftest import SITE_CONFIG, create_store, site_of

PUBLIC = "public_url: 'https://Cleanup.example.org:8443/path'"


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("cleanup.example.org:8443", 200),
        ("cleanup.example.org", 200),
        ("other.example.org", 200),
        ("10.0.0.1", 200),
        ("localhost", 200),
        ("example.org", 421),
        ("evil.example", 421),
    ],
)
def test_the_host_of_the_public_url_is_allowed_like_the_listed_names(
    tmp_path: Path, host: str, status: int
) -> None:
    with site_of(create_store(tmp_path / "store")) as site:
        key = "tokens_file: ./tokens.json"
        changed = SITE_CONFIG.replace(key, f"{key}, {PUBLIC}, allowed_hosts: [other.example.org]")
        (site.store.path / "cleanup_config.yaml").write_text(changed)
        assert site.client.get("/healthz", headers={"Host": host}).status_code == status


def test_a_form_from_the_public_url_is_accepted_behind_a_proxy_that_changes_the_host(tmp_path: Path) -> None:
    with site_of(create_store(tmp_path / "store")) as site:
        key = "tokens_file: ./tokens.json"
        (site.store.path / "cleanup_config.yaml").write_text(SITE_CONFIG.replace(key, f"{key}, {PUBLIC}"))
        for origin, status in (("https://cleanup.example.org:8443", 303), ("https://evil.example", 403)):
            answer = site.client.post(
                "/login",
                data={"token": site.tokens["read"]},
                headers={"Origin": origin},
                follow_redirects=False,
            )
            assert answer.status_code == status
