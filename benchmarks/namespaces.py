"""Ranks of one machine in network namespaces, each behind a token bucket of a given rate."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PREFIX = f"plait{os.getpid()}-"
MISSING = (subprocess.CalledProcessError, FileNotFoundError)  # where there are no namespaces


@contextmanager
def network(ranks: int, rate: str) -> Iterator[None]:
    """One namespace per rank and one with a switch between them."""
    names = [f"{PREFIX}{number}" for number in range(ranks)]
    switch, created = f"{PREFIX}switch", list[str]()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an error: nothing stays behind
    try:
        for name in (switch, *names):
            ip(f"netns add {name}")
            created.append(name)
        ip(f"-n {switch} link add br0 type bridge")
        ip(f"-n {switch} link set br0 up")
        for number, name in enumerate(names):
            ip(f"-n {name} link add eth0 type veth peer name p{number} netns {switch}")
            ip(f"-n {switch} link set p{number} master br0")
            ip(f"-n {switch} link set p{number} up")
            ip(f"-n {name} addr add 10.77.0.{number + 1}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
            ip(f"-n {name} link set lo up")
            tool(f"tc -n {name} qdisc add dev eth0 root tbf rate {rate} burst 256kb latency 100ms")
        yield
    finally:
        for name in created:
            ip(f"netns del {name}")


def run(ranks: int, arguments: Sequence[str]) -> int:
    """The worst exit code of a Python script that every rank runs in its namespace."""
    started = []
    for number in range(ranks):
        settings = [
            f"RANK={number}",
            f"LOCAL_RANK={number}",
            f"WORLD_SIZE={ranks}",
            "OMP_NUM_THREADS=1",
            "MASTER_ADDR=10.77.0.1",
            "MASTER_PORT=29511",
            "GLOO_SOCKET_IFNAME=eth0",
            "TORCHELASTIC_RUN_ID=links",
        ]
        command = ["ip", "netns", "exec", f"{PREFIX}{number}", "env", *settings]
        command += [sys.executable, "-W", "ignore", *arguments]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    try:
        return max(process.wait() for process in started)
    finally:
        for process in started:
            process.kill()


def ip(arguments: str) -> None:
    tool(f"ip {arguments}")


def tool(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)
