"""Predicted against measured peak memory of Megatron-LM runs: `python memory_accuracy.py FILE.csv`.

FILE describes runs by Megatron's own arguments, with the peak that torch's allocator reported in
`peak_mem_bytes`, on the last rank: that one writes Megatron's logs, so it is a peak of the last stage.
Only decoders are modelled; what the arguments leave open is taken as documented: tied embeddings for
one-projection layers, attention written out where no fused kernel is named.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from plait.api.predict.architecture import read_architecture
from plait.api.predict.assume import assume
from plait.api.predict.predictor import Predictor, reserved_bytes, tensor_bytes
from plait.api.predict.run import Row, read_run
from plait.api.predict.table import read_rows
from plait.benchmarks.accuracy import percent, table
from plait.ir.errors import PlaitError

DECODERS = ("gpt", "moe", "mixtral")
PADDED = 128  # a vocabulary is padded to a multiple of this times the tensor ranks
VOCABULARIES = {"Llama2Tokenizer": 32000, "GPTSentencePieceTokenizer": 256000}  # Nemotron's model
GPT2_VOCABULARY = 50257


def argument(row: Row, name: str) -> str:
    found = re.search(rf'"--{name}": "?([^,"}}]*)', row["all_args"])
    return found[1] if found else ""


def least_devices(row: Row) -> int:
    """Devices of a run that names none: those of a node, or of a stage's ranks or experts if more, whose
    insides are split like other operators unless the run says otherwise."""
    tensor, pipeline, context, experts = (int(row[c] or 1) for c in ("tp", "pp", "cp", "ep"))
    inside = int(float(row["etp"] or tensor)) if row["num_experts"] else 1
    return max(8, pipeline * max(tensor * context, experts * inside))


def described(row: Row) -> Row:
    """The run in the columns that predictions read."""
    ranks, layers = int(row["tp"]), float(row["layers"] or 0)
    unit = PADDED * ranks
    vocabulary = float(row["vocab"] or VOCABULARIES.get(row["tokenizer"], GPT2_VOCABULARY))
    chunk = float(row["layers_per_vstage"] or 0)
    written = argument(row, "attention-backend") == "unfused" or row["transformer_impl"] == "local"
    return {
        **{name: row[name] for name in SAME},
        "kv_heads": row["kv_groups"],
        "experts": row["num_experts"],
        "moe_ffn": argument(row, "moe-ffn-hidden-size"),
        "num_gpus": row["num_gpus"] or str(least_devices(row)),
        "vocab": str(-(-vocabulary // unit) * unit),
        "gpu_mem_gb": "80",
        "vpp": str(layers / float(row["pp"]) / chunk) if chunk and layers else "1",
        "gated_mlp": str(int(bool(row["swiglu"]))),
        "tied": str(int(not row["untie"])),
        "zero_stage": str(int(bool(row["dist_opt"]))),
        "sp": str(int(bool(row["sp"]))),
        "flash_attn": str(int(not written)),
        "precision": "bf16" if row["bf16"] else "fp16" if row["fp16"] else "fp32",
    }


# fmt: off
SAME = (
    "row_id", "layers", "hidden", "heads", "ffn", "topk", "seq_len", "gpu", "tp", "pp", "cp", "ep",
    "microbatch", "global_batch", "recompute",
)
# fmt: on


def last_stage_bytes(row: Row, predictor: Predictor) -> int:
    """Bytes that the allocator has on a rank of the last stage."""
    row, _ = assume(row)
    run = predictor.predict(read_architecture(row), read_run(row))
    return reserved_bytes(tensor_bytes(run.stages[-1]), run.device_bytes)


def main(arguments: list[str]) -> int:
    path = Path(arguments[0]) if arguments else Path("missing")
    if not path.is_file():
        print(f"skipped: there is no file {path}")
        return 0
    predictor, errors, left = Predictor(), defaultdict(list), defaultdict(int)
    for row in read_rows(path):
        if row["peak_mem_bytes"] and row["family"] in DECODERS:
            try:
                predicted = last_stage_bytes(described(row), predictor)
            except PlaitError as reason:
                left[str(reason)] += 1
                continue
            error = predicted / float(row["peak_mem_bytes"]) - 1
            for group in ("all", row["family"], row["gpu"]):
                errors[group].append(error)
    rows = [
        [name, str(len(found)), percent(median(map(abs, found))), percent(median(found))]
        for name, found in sorted(errors.items())
    ]
    print(table(["runs", "number", "median error", "bias"], rows))
    print(*(f"not modelled, {count}: {note}" for note, count in left.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
