"""Compressed all-reduces over shaped links: `python benchmarks/links.py [--rate 1gbit] [--ranks 2]`.

Every rank runs `benchmarks/exchange.py` in a network namespace of its own, behind a token bucket of
that rate, so what compression gains on a real link can be seen on one machine. Needs root, `ip` and
`tc`; says so and ends where it cannot.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from plait.benchmarks.namespaces import MISSING, network, run

BENCHMARK = Path(__file__).with_name("exchange.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--elements", type=int, default=16 * 2**20)
    options = parser.parse_args()
    try:
        with network(options.ranks, options.rate):
            print(f"{options.ranks} ranks, {options.rate} each way")
            return run(options.ranks, [str(BENCHMARK), f"--elements={options.elements}"])
    except MISSING as error:
        print(f"no network namespaces here ({error}): root, ip and tc are needed")
        return 0


if __name__ == "__main__":
    sys.exit(main())
