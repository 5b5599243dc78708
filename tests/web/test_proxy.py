"""The interface behind nginx, with the configuration of docs/how-to/http-api.md."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import pytest
import requests

from tests.cleanup.conftest import JobStore
from tests.ports import free_port
from tests.requirements import find_program, needs
from tests.web.conftest import eventually, start

NGINX = find_program("nginx")
TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "http-api.md").read_text(encoding="utf-8")


@pytest.mark.slow
@needs("nginx")
def test_the_example_for_nginx(store: JobStore, tmp_path: Path) -> None:
    assert NGINX is not None
    (example,) = re.findall(r"^```nginx\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    daemon = start(store, api="public_url: 'https://cleanup.example.org', trusted_proxies: ['127.0.0.1']")
    port = free_port()
    folder = tmp_path / "nginx"  # nginx of root gives it to another user
    folder.mkdir()
    (folder / "nginx.conf").write_text(
        f"""
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{ listen 127.0.0.1:{port}; {example.replace("http://127.0.0.1:5001", daemon.url)} }}
}}
"""
    )
    proxy = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        host = f"cleanup.example.org:{port}"
        eventually(lambda: socket.create_connection(("127.0.0.1", port)).close())
        first = requests.get(f"http://127.0.0.1:{port}/", headers={"Host": host}, timeout=10)
        assert first.status_code == 401
        with requests.Session() as browser:
            browser.headers.update({"Host": host, "Origin": f"http://{host}"})
            login = browser.post(
                f"http://127.0.0.1:{port}/login",
                data={"token": daemon.tokens["clean"]},
                allow_redirects=False,
                timeout=10,
            )
            assert login.status_code == 303
            cookie = {"Cookie": login.headers["Set-Cookie"].partition(";")[0]}
            done = browser.post(f"http://127.0.0.1:{port}/api/cleanup", headers=cookie, timeout=60)
            assert done.json()["cleaned_jobs"] == {"successful": 1, "failed": 1}
            events = f"http://127.0.0.1:{port}/api/cleanup/events?once=true"
            assert browser.get(events, headers=cookie, timeout=30).text == "event: idle\ndata: null\n\n"
    finally:
        proxy.terminate()
        proxy.wait(30)
        daemon.stop()
