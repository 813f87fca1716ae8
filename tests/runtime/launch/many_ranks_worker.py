"""One rank of many, whose process group is fake: what it takes to open a program.

many_ranks_worker.py FOLDER RANKS RANK
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # as every optimizer of torch does at its first step
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg  # registers the backend

from plait.runtime.program import Program
from plait.tests.runtime.launch.test_many_ranks import network


def resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def main(folder: str, ranks: int, rank: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank % 8), "LOCAL_WORLD_SIZE": "8"}
    dist.init_process_group("fake", store=dist.HashStore(), rank=rank, world_size=ranks)
    with torch.device("meta"):
        module = network()
    before, start = resident_bytes("VmRSS"), time.process_time()
    program = Program.open(folder, module, torch.optim.SGD, {"lr": 0.1}, device="cpu")
    spent = time.process_time() - start
    flats = [p.flat for p in program.store.parameters.values()]
    used = {
        "cpu_seconds": spent,
        "peak_bytes": resident_bytes("VmHWM") - before,
        "shard_bytes": sum(flat.numel() * flat.element_size() for flat in flats),
    }
    print(json.dumps(used))


main(sys.argv[1], *map(int, sys.argv[2:]))
