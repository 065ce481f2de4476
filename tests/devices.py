"""A second machine: a network namespace with an SSH server, whose Python has numpy and two runtimes alone."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PATHS = f"{os.environ['PATH']}:/usr/sbin:/sbin:/usr/local/sbin"
IP, SSHD = shutil.which("ip", path=PATHS), shutil.which("sshd", path=PATHS)
THERE = ("numpy", "numpy.libs", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Sshd:
    """A running SSH server: its address, and the folder that holds its keys, its log and what it serves."""

    host: str
    port: int
    root: Path

    @property
    def log(self) -> str:
        """What it said so far."""
        return (self.root / "log").read_text()


@contextmanager
def namespace() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a new network namespace, joined to ours by a cable, and the words that run a program in it.

    Where that needs rights that we lack, it is this machine.
    """
    name, inside, outside = (f"qm{os.getpid()}{end}" for end in ("", "i", "o"))
    net = f"198.18.{os.getpid() // 64 % 256}.{os.getpid() % 64 * 4}"  # the range for tests of networks, RFC 2544
    ours, theirs = (f"{net.rpartition('.')[0]}.{int(net.rpartition('.')[2]) + n}" for n in (1, 2))
    steps = [
        f"netns add {name}",
        f"link add {outside} type veth peer name {inside} netns {name}",
        f"addr add {ours}/30 dev {outside}",
        f"link set {outside} up",
        f"-n {name} addr add {theirs}/30 dev {inside}",
        f"-n {name} link set {inside} up",
    ]
    try:
        done = [
            IP and subprocess.run([IP, *step.split()], capture_output=True, check=False).returncode for step in steps
        ]
        if any(code != 0 for code in done):
            yield "127.0.0.1", []
        else:
            yield theirs, [str(IP), "netns", "exec", name]
    finally:
        if IP:
            subprocess.run([IP, "netns", "del", name], capture_output=True, check=False)


def _key(file: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    """Start an SSH server with keys of its own on a second machine; `ssh` is found with them."""
    if not SSHD or not shutil.which("ssh-keygen"):
        pytest.skip("there is no sshd; install openssh-server")
    root = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        _key(root / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with namespace() as (host, there), (root / "log").open("w") as log, pytest.MonkeyPatch.context() as patch:
        (root / "known_hosts").write_text(f"[{host}]:{port} {(root / 'host.pub').read_text()}")
        shutil.copyfile(root / "user.pub", root / "authorized_keys")
        (root / "sshd_config").write_text(
            f"ListenAddress {host}\nPort {port}\nHostKey {root}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {root}/authorized_keys\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin prohibit-password\n"
        )
        (root / "ssh_config").write_text(
            f"IdentityFile {root}/user\nIdentitiesOnly yes\nUserKnownHostsFile {root}/known_hosts\n"
        )
        (root / "bin").mkdir()
        (root / "bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {root}/ssh_config "$@"\n')
        (root / "bin/ssh").chmod(0o755)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it, and takes no other
        patch.setenv("PATH", f"{root}/bin:{os.environ['PATH']}")
        found = Sshd(host, port, root)
        process = subprocess.Popen([*there, SSHD, "-D", "-e", "-f", root / "sshd_config"], stderr=log)
        try:
            for _ in range(100):
                if "Server listening" in found.log:
                    break
                assert process.poll() is None, found.log
                time.sleep(0.1)
            yield found
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def device(sshd):
    """Return the address of a folder there, with a virtual environment that has numpy and two runtimes alone."""
    folder = sshd.root / "it's a device"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (inside,) = (folder / ".venv/lib").glob("python*/site-packages")
    packages = Path(sysconfig.get_paths()["purelib"])
    for name in THERE:
        if (packages / name).exists():
            (inside / name).symlink_to(packages / name)
    return f"ssh://{getpass.getuser()}@{sshd.host}:{sshd.port}{str(folder).replace(' ', '%20')}"
