"""Compressed all-reduces over shaped links: `python benchmarks/links.py [--rate 1gbit] [--ranks 2]`.

Every rank runs `benchmarks/exchange.py` in a network namespace of its own, behind a token bucket of
that rate, so what compression gains on a real link can be seen on one machine. Needs root, `ip` and
`tc`; says so and ends where it cannot.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BENCHMARK = Path(__file__).with_name("exchange.py")
PREFIX = f"plait{os.getpid()}-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--elements", type=int, default=16 * 2**20)
    options = parser.parse_args()
    try:
        with network(options.ranks, options.rate):
            print(f"{options.ranks} ranks, {options.rate} each way")
            return run(options.ranks, options.elements)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"no network namespaces here ({error}): root, ip and tc are needed")
        return 0


@contextmanager
def network(ranks: int, rate: str) -> Iterator[None]:
    """One namespace per rank and one with a switch between them."""
    names = [f"{PREFIX}{number}" for number in range(ranks)]
    switch, made = f"{PREFIX}switch", list[str]()
    try:
        for name in (switch, *names):
            ip(f"netns add {name}")
            made.append(name)
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
        for name in made:
            ip(f"netns del {name}")


def run(ranks: int, elements: int) -> int:
    """The ranks' exit code; rank 0 prints."""
    started = []
    for number in range(ranks):
        settings = [
            f"RANK={number}", f"LOCAL_RANK={number}", f"WORLD_SIZE={ranks}", "OMP_NUM_THREADS=1",
            "MASTER_ADDR=10.77.0.1", "MASTER_PORT=29511", "GLOO_SOCKET_IFNAME=eth0",
            "TORCHELASTIC_RUN_ID=links",
        ]  # fmt: skip
        command = ["ip", "netns", "exec", f"{PREFIX}{number}", "env", *settings]
        command += [sys.executable, "-W", "ignore", str(BENCHMARK), f"--elements={elements}"]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    return max(process.wait() for process in started)


def ip(arguments: str) -> None:
    tool(f"ip {arguments}")


def tool(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
