"""Containers as the manifests describe them: an image from the Dockerfile, run by podman without a network.

The base image is the Debian of tests/system, since none can be fetched; a registry's Python differs from it
in nothing that the Dockerfile uses.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.machine import PROJECT, base_root, wheelhouse, why_not as no_machine

IMAGE = "localhost/eemtcleanupd"
OWNER = 1000
"""The user of the image, who owns the job store."""
BASE = "localhost/debian-with-python"
_NOT_NEEDED = ("var/cache", "var/lib/apt", "usr/share/doc", "usr/share/locale", "usr/share/man")


def why_not() -> str | None:
    """Return why no container can be made here, None when one can."""
    missing = [tool for tool in ("podman", "runc") if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else no_machine()


@dataclass
class Podman:
    """Podman with images and containers of its own below a folder."""

    folder: Path

    @property
    def command(self) -> str:
        """Return how a shell calls it."""
        return f"podman --root={self.folder}/root --runroot={self.folder}/run --runtime=runc"

    def __call__(self, *arguments: str | Path, check: bool = True, timeout: float = 120) -> str:
        """Run a podman command and return what it printed, errors too."""
        done = subprocess.run(
            [*self.command.split(), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"podman {arguments}\n{done.stdout}"
        return done.stdout.strip()

    def build(self) -> None:
        """Build the image as docs/how-to/docker.md says, with the packages in the base image."""
        extra = self.folder / "extra"
        (extra / "etc").mkdir(parents=True)
        (extra / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        wheelhouse(extra / "wheels")
        left_out = [f"--exclude=./{each}/*" for each in _NOT_NEEDED]
        own = ["-C", str(extra), "./etc/pip.conf", "./wheels"]
        tar = ["tar", "-c", *left_out, "-C", str(base_root()), ".", *own]
        with subprocess.Popen(tar, stdout=subprocess.PIPE) as packing:
            imported = subprocess.run(
                [*self.command.split(), "import", "--quiet", "-", BASE],
                stdin=packing.stdout,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        assert imported.returncode == 0, imported.stderr
        # Format docker: the other one has no HEALTHCHECK.  Isolation chroot: needs the least of the machine.
        how = ["--format=docker", "--isolation=chroot", "--network=host", f"--build-arg=BASE={BASE}"]
        file = PROJECT / "packaging/docker/Dockerfile"
        self("build", "-q", *how, f"--file={file}", f"--tag={IMAGE}", PROJECT, timeout=600)

    def run(self, *options: str, check: bool = True) -> str:
        """Run a container to its end and return what it printed."""
        return self("run", "--rm", *EVERYWHERE, *options, check=check)

    def start(self, name: str, *options: str) -> Container:
        """Start a container in the background."""
        self("run", "--detach", f"--name={name}", *EVERYWHERE, *options)
        return Container(self, name)


# No network is needed, and not everybody may raise limits.
EVERYWHERE = ("--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")


@dataclass
class Container:
    """A container that was started."""

    podman: Podman
    name: str

    def exec(self, *command: str, check: bool = True) -> str:
        """Run a command inside."""
        return self.podman("exec", self.name, *command, check=check)

    def logs(self) -> str:
        """Return what it printed."""
        return self.podman("logs", self.name)

    def until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def stop(self) -> int:
        """Stop it by its signal, and return its exit code."""
        self.podman("stop", "--time=120", self.name)
        code = int(self.podman("inspect", "--format={{.State.ExitCode}}", self.name))
        self.podman("rm", self.name)
        return code


def compose_options(service: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the options of podman for a service of a compose file.

    Args:
        service: the service, variables replaced.
        folder: what relative paths are relative to.
    """
    rest = dict(service)
    # How it comes about, and what becomes of it afterwards.
    for name in (
        "image",
        "build",
        "restart",
        "depends_on",
        "logging",
    ):
        rest.pop(name)
    options = [f"--user={rest.pop('user')}", f"--stop-timeout={int(rest.pop('stop_grace_period')[:-1]) * 60}"]
    options += ["--read-only", "--read-only-tmpfs=false"] if rest.pop("read_only") else []
    options += [f"--tmpfs={each}" for each in rest.pop("tmpfs")]
    options += [f"--cap-drop={each}" for each in rest.pop("cap_drop")]
    options += [f"--security-opt={each.removesuffix(':true')}" for each in rest.pop("security_opt")]
    options += [f"--pids-limit={rest.pop('pids_limit')}", f"--memory={rest.pop('mem_limit')}"]
    options += [f"--env={each}" for each in rest.pop("environment")]
    options += [f"--volume={folder / each}" for each in rest.pop("volumes")]
    assert not rest, f"nothing is known of {set(rest)}"
    return [*options, IMAGE]


def web_options(service: Mapping[str, Any], folder: Path, program: Path) -> list[str]:
    """Return the options of podman for the web interface of a compose file, as a stand-in's container.

    Args:
        service: the service, variables replaced.
        folder: what relative paths are relative to.
        program: the stand-in.
    """
    rest = {name: value for name, value in service.items() if name not in {"image", "restart", "ports"}}
    options = [f"--env={each}" for each in rest.pop("environment")]
    options += [f"--volume={folder / each}" for each in rest.pop("volumes")]
    assert not rest, f"nothing is known of {set(rest)}"
    user = f"--user={OWNER}:{OWNER}"
    return [*options, user, f"--volume={program}:/app/app.py:ro", "--entrypoint=python3", BASE, "/app/app.py"]


def pod_options(pod: Mapping[str, Any], volumes: Mapping[str, Path]) -> list[str]:
    """Return the options of podman for a Kubernetes pod with one container.

    Args:
        pod: the pod's spec.
        volumes: the folder of each volume; one that is not there is an emptyDir.
    """
    (container,) = pod["containers"]
    whole, own = pod["securityContext"], container["securityContext"]
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["readOnlyRootFilesystem"]
    assert not own["allowPrivilegeEscalation"]
    options = [f"--user={whole['runAsUser']}:{whole['runAsGroup']}", f"--group-add={whole['fsGroup']}"]
    options += ["--read-only", "--read-only-tmpfs=false", "--security-opt=no-new-privileges"]
    options += [f"--cap-drop={each}" for each in own["capabilities"]["drop"]]
    options += [f"--stop-timeout={pod['terminationGracePeriodSeconds']}"]
    options += [f"--memory={container['resources']['limits']['memory'].lower().removesuffix('i')}"]
    options += [f"--env={each['name']}={each['value']}" for each in container["env"]]
    for mount in container["volumeMounts"]:
        name, place = mount["name"], mount["mountPath"]
        mode = ":ro" if mount.get("readOnly") else ""
        options.append(f"--volume={volumes[name]}:{place}{mode}" if name in volumes else f"--tmpfs={place}")
    command, *more = container.get("command", [None])
    if command is not None:
        options.append(f"--entrypoint={command}")
    return [*options, IMAGE, *more, *container.get("args", [])]
