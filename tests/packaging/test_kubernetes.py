"""The manifests: rendered, valid, without rights, complete, and their containers run as they say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from eemtcleanupd.clock import system_clock
from eemtcleanupd.web.tokens import TokenFile
from tests.packaging.conftest import give_away
from tests.packaging.containers import Podman, pod_options
from tests.packaging.test_docker import DONE, cleaned

KUBERNETES = Path(__file__).parents[2] / "packaging/kubernetes"
OVERLAYS = ("cronjob", "daemon", "monitored")
VERSIONS = ("1.29", "1.36")
Manifest = dict[str, Any]
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # a deprecated field is a warning
    return tuple(yaml.safe_load_all(done.stdout))


def one(overlay: str, kind: str) -> Manifest:
    (found,) = [each for each in rendered(overlay) if each["kind"] == kind]
    return found


def pod_of(manifest: Manifest) -> Manifest:
    spec = manifest["spec"]
    template = spec["jobTemplate"]["spec"]["template"] if manifest["kind"] == "CronJob" else spec["template"]
    pod: Manifest = template["spec"]
    return pod


def pods(overlay: str) -> Iterator[Manifest]:
    return (pod_of(each) for each in rendered(overlay) if each["kind"] in {"CronJob", "Deployment"})


@pytest.mark.xdist_group("jsonschema")
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_as_its_schema_wants_it(overlay: str, version: str) -> None:
    import kubernetes_validate  # slow: it imports jsonschema

    for manifest in rendered(overlay):
        if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # of the Prometheus operator, whose schemas are not Kubernetes' own
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_one_that_the_profile_restricted_lets_in(overlay: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, and a little more."""
    for pod in pods(overlay):
        whole = pod["securityContext"]
        assert whole["runAsNonRoot"]
        assert whole["runAsUser"] > 0
        assert whole["seccompProfile"]["type"] == "RuntimeDefault"
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert {"memory"} <= container["resources"]["limits"].keys()
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_manifest_names_is_there(overlay: str) -> None:
    names = {(each["kind"], each["metadata"]["name"]) for each in rendered(overlay)}
    for pod in pods(overlay):
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        volumes = {each["name"]: each for each in pod["volumes"]}
        mounted = {each["name"] for container in pod["containers"] for each in container["volumeMounts"]}
        assert mounted == set(volumes)
        assert ("ConfigMap", volumes["config"]["configMap"]["name"]) in names
        assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "eemt-data-pvc"
    if overlay == "monitored":
        assert ("PersistentVolumeClaim", "eemt-data-pvc") in names
        everything = [each["metadata"] for each in rendered(overlay) if each["kind"] != "Namespace"]
        assert {each["namespace"] for each in everything} == {"eemt"}
    if overlay != "cronjob":
        pod_labels = one(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
        service = one(overlay, "Service")
        for selector in (
            one(overlay, "Deployment")["spec"]["selector"]["matchLabels"],
            service["spec"]["selector"],
            one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        ):
            assert selector.items() <= pod_labels
        (container,) = pod_of(one(overlay, "Deployment"))["containers"]
        ports = {each["name"] for each in container["ports"]}
        probes = [container[each]["httpGet"] for each in ("startupProbe", "livenessProbe", "readinessProbe")]
        assert ports == {each["port"] for each in probes} == {service["spec"]["ports"][0]["targetPort"]}
    if overlay == "monitored":
        monitor = one(overlay, "ServiceMonitor")["spec"]
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["endpoints"][0]["port"] in {each["name"] for each in service["spec"]["ports"]}


def test_the_cron_job_is_the_documents() -> None:
    cron_job = one("cronjob", "CronJob")
    (container,) = pod_of(cron_job)["containers"]
    assert (cron_job["metadata"]["name"], cron_job["spec"]["schedule"]) == ("eemt-cleanup", "0 2 * * *")
    assert container["command"] == ["python", "scripts/cleanup_jobs.py"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["EEMT_SUCCESS_RETENTION_HOURS"] == "168"
    assert variables["EEMT_FAILED_RETENTION_HOURS"] == "12"
    assert {"name": "data", "mountPath": "/app/data"} in container["volumeMounts"]
    assert pod_of(cron_job)["restartPolicy"] == "OnFailure"


class Swapped:
    """A folder as the kubelet keeps a ConfigMap or a Secret: the files are links by way of `..data`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._generation = 0

    def put(self, files: dict[str, str]) -> Path:
        """Replace all files at once."""
        self._generation += 1
        now = self.folder / f"..{self._generation}"
        now.mkdir()
        for name, text in files.items():
            (now / name).write_text(text)
            (now / name).chmod(0o440)
            link = self.folder / name
            if not link.is_symlink():
                link.symlink_to(f"..data/{name}")
        os.chown(now, 0, 1000)
        for path in now.iterdir():
            os.chown(path, 0, 1000)
        (self.folder / "..data_tmp").symlink_to(now.name)
        (self.folder / "..data_tmp").rename(self.folder / "..data")
        return self.folder


def database_of_pods(store: Path) -> Path:
    """Move the database to the folder of the volume that is ``/tmp`` in the web interface's pod."""
    folder = store / "db"
    folder.mkdir()
    (store / "jobs.db").rename(folder / "jobs.db")
    give_away(folder)
    return folder / "jobs.db"


ASK = """
import sys, urllib.request
request = urllib.request.Request(f"http://127.0.0.1:5001{sys.argv[1]}", headers={"Host": "10.1.2.3:5001"})
if len(sys.argv) > 2:
    request.add_header("Authorization", f"Bearer {sys.argv[2]}")
answer = urllib.request.urlopen(request)
print(answer.status, answer.read().decode())
"""


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.xdist_group("containers")
@pytest.mark.timeout(900)
class TestInContainers:
    def test_the_container_of_the_cron_job_cleans(self, podman: Podman, store: Path, tmp_path: Path) -> None:
        config = Swapped(tmp_path / "config").put(one("cronjob", "ConfigMap")["data"])
        pod = pod_of(one("cronjob", "CronJob"))
        database = database_of_pods(store)
        said = podman.run(*pod_options(pod, {"data": store, "config": config}))
        assert f"[INFO] {DONE}" in said
        assert cleaned(database) == 6
        assert DONE in (store / "logs/cleanup.log").read_text()

    def test_the_container_of_the_deployment_serves_reloads_and_ends_in_order(
        self, podman: Podman, store: Path, tmp_path: Path
    ) -> None:
        tokens = tmp_path / "tokens.json"
        token = TokenFile(tokens).add("prometheus", "read", system_clock(), None)
        hashes = tokens.read_text()
        secrets = Swapped(tmp_path / "secrets").put({"tokens.json": hashes, "metrics-token": token})
        config = Swapped(tmp_path / "config")
        files = one("monitored", "ConfigMap")["data"]
        pod = pod_of(one("monitored", "Deployment"))
        volumes = {"data": store, "secrets": secrets, "config": config.put(files)}
        database = database_of_pods(store)
        daemon = podman.start("deployment", *pod_options(pod, volumes))
        probe = pod["containers"][0]["livenessProbe"]["httpGet"]["path"]
        daemon.until(lambda: daemon.exec("python", "-c", ASK, probe, check=False).startswith("200"))
        monitor = one("monitored", "ServiceMonitor")["spec"]["endpoints"][0]
        key = monitor["authorization"]["credentials"]["key"]
        shown = daemon.exec("python", "-c", ASK, monitor["path"], (secrets / key).read_text())
        assert "eemt_cleanup_runs_total" in shown
        assert "401" in daemon.exec("python", "-c", ASK, monitor["path"], check=False)
        # The variable of the overlay wins over the file, whose other keys are read again when they change.
        changed = files["cleanup_config.yaml"].replace("hours: 12", "hours: 1000000")
        config.put({"cleanup_config.yaml": changed})
        daemon.until(lambda: "is in force" in daemon.logs())
        at = "--config=/etc/eemtcleanupd/cleanup_config.yaml"
        assert json.loads(daemon.exec("eemtcleanupd", "status", "--json", at))["running"] is True
        podman("kill", "--signal=USR1", "deployment")
        daemon.until(lambda: DONE in (store / "logs/cleanup.log").read_text())
        assert cleaned(database) == 0  # 336 hours, by the overlay, and 1000000, by the file
        assert daemon.stop() == 0
