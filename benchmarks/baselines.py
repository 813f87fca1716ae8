"""Plans against what others would do: `python benchmarks/baselines.py [-o FILE.md] [MODEL …]`.

Published shapes of Hugging Face models, planned for four clusters in bf16 with AdamW, and priced as
every baseline under the same cost model. A row names the best baseline of one role (the whole
cluster as one axis), the best of all, and how much longer than the plan their steps take. Every plan
is added up again from its own amounts and held against its budget. Ends with status 1 where a plan
is slower than a baseline that fits, over memory, or does not add up.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from plait.cost_model.explain.memory_terms import memory_term
from plait.cost_model.explain.step_terms import step_term
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.errors import InfeasibleError
from plait.ir.lowering.cast import in_precision
from plait.ir.lowering.rescale import rescale
from plait.ir.model.model import Model
from plait.ir.plan.plan import Plan
from plait.ir.plan.verify import verify_plan
from plait.planner import PlanOptions, plan
from plait.planner.search.baselines import baseline_plan, parse_baselines
from plait.planner.search.driver import SearchSpace

CLUSTERS = ("8xa100-40", "2x8xh100", "4x8xa100-80", "8x8xh100")
ONE_ROLE = ("ddp", "zero1", "zero2", "fsdp", "word:tp={0}", "word:tp={0},sp", "word:pp={0}")
SEVERAL = ("hsdp", "megatron")
PER_DEVICE = 8  # samples
# fmt: off
MODELS: dict[str, tuple[str, int, dict[str, object]]] = {
    "gpt2-xl": ("gpt2", 1024, {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "opt-6.7b": ("opt", 2048, {"hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32,
                               "num_attention_heads": 32, "word_embed_proj_dim": 4096}),
    "llama-2-13b": ("llama", 4096, {"hidden_size": 5120, "intermediate_size": 13824,
                                    "num_hidden_layers": 40, "num_attention_heads": 40,
                                    "num_key_value_heads": 40}),
    "llama-3-8b": ("llama", 8192, {"hidden_size": 4096, "intermediate_size": 14336,
                                   "num_hidden_layers": 32, "num_attention_heads": 32,
                                   "num_key_value_heads": 8, "vocab_size": 128256}),
    "mistral-7b": ("mistral", 4096, {"sliding_window": None}),
    "qwen2-7b": ("qwen2", 4096, {"hidden_size": 3584, "intermediate_size": 18944,
                                 "num_hidden_layers": 28, "num_attention_heads": 28,
                                 "num_key_value_heads": 4, "vocab_size": 152064}),
    "gpt-neox-20b": ("gpt_neox", 2048, {}),
    "pythia-1.4b": ("gpt_neox", 2048, {"hidden_size": 2048, "intermediate_size": 8192,
                                       "num_hidden_layers": 24, "num_attention_heads": 16}),
    "bert-large": ("bert", 512, {"hidden_size": 1024, "intermediate_size": 4096,
                                 "num_hidden_layers": 24, "num_attention_heads": 16}),
    "roberta-base": ("roberta", 512, {"max_position_embeddings": 514}),
    "phi-2": ("phi", 2048, {"hidden_size": 2560, "intermediate_size": 10240,
                            "num_hidden_layers": 32, "num_attention_heads": 32}),
    "mixtral-8x7b": ("mixtral", 4096, {"sliding_window": None}),
}
# fmt: on
# fmt: off
ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "llama": "LlamaForCausalLM",
                 "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
                 "gpt_neox": "GPTNeoXForCausalLM", "bert": "BertForMaskedLM",
                 "roberta": "RobertaForMaskedLM", "phi": "PhiForCausalLM",
                 "mixtral": "MixtralForCausalLM"}
# fmt: on


class Row(NamedTuple):
    """A model on a cluster: the plan, and the best baselines that fit."""

    model: str
    cluster: str
    made: Plan | None
    one_role: tuple[str, float] | None
    several: tuple[str, float] | None
    seconds: float

    def margin(self, best: tuple[str, float] | None) -> float | None:
        """Times as long as the plan."""
        if best is None or self.made is None:
            return None
        return best[1] / self.made.prediction.step_seconds

    def wrong(self) -> Iterator[str]:
        """What is not as it should be."""
        for best in (self.one_role, self.several):
            margin = self.margin(best)
            if best is not None and (margin is None or margin < 1 - 1e-9):
                yield f"{self.model} on {self.cluster}: slower than {best[0]}"
        if self.made is not None:
            verify_plan(self.made)
            said = self.made.prediction.step_seconds
            if not math.isclose(step_term(self.made).value, said, rel_tol=1e-9):
                yield f"{self.model} on {self.cluster}: does not add up"
            if any(
                memory_term(self.made, s).value > self.made.memory_limit_bytes
                for s in range(len(self.made.stages))
            ):
                yield f"{self.model} on {self.cluster}: over memory"

    def cells(self) -> tuple[str, ...]:
        if self.made is None:
            return self.model, self.cluster, "nothing fits", "", "", "", f"{self.seconds:.1f}"
        best = [
            f"{found[0]} ({self.margin(found):.2f}x)" if found else "none fits"
            for found in (self.one_role, self.several)
        ]
        step = f"{self.made.prediction.step_seconds:.3g} s"
        return self.model, self.cluster, self.made.strategy_text, step, *best, f"{self.seconds:.1f}"


def traced(name: str) -> Model:
    kind, seq, values = MODELS[name]
    config = transformers.AutoConfig.for_model(kind, **values)
    config.architectures = [ARCHITECTURES[kind]]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        source = load_source(f"hf:{folder}/config.json", batch=4, seq=seq)
    return trace(source.model, source.batch, source.loss_fn, name=name)


def rows(name: str) -> Iterator[Row]:
    model = traced(name)
    for spec in CLUSTERS:
        cluster = load_cluster(spec)
        sized = in_precision(rescale(model, PER_DEVICE * cluster.devices), "bf16")
        start = time.process_time()
        try:
            answer = plan(sized, cluster, PlanOptions())
        except InfeasibleError:
            answer = None
        seconds = time.process_time() - start
        space = SearchSpace.create(sized, cluster, PlanOptions())
        best = []
        for names in (ONE_ROLE, SEVERAL):
            text = ",".join(names).format(cluster.devices)
            priced = ((b.name, baseline_plan(space, b)) for b in parse_baselines(text, cluster))
            fits = [
                (baseline, found.prediction.step_seconds)
                for baseline, found in priced
                if found and found.peak_bytes <= found.memory_limit_bytes
            ]
            best.append(min(fits, key=lambda f: f[1], default=None))
        yield Row(name, spec, answer, best[0], best[1], seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="write the table as Markdown")
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    options = parser.parse_args()
    torch.set_num_threads(1)
    titles = ("model", "cluster", "plan", "step", "best of one role", "best of several", "CPU s")
    lines, results = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"], []
    for name in options.models:
        for row in rows(name):
            results.append(row)
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in row.cells()) + " |")
            print(lines[-1], flush=True)
    for title, attribute in (("one role", "one_role"), ("several roles", "several")):
        margins = [row.margin(getattr(row, attribute)) for row in results]
        known = [m for m in margins if m is not None]
        if known:
            mean = math.exp(sum(map(math.log, known)) / len(known))
            alone = sum(row.made is not None and getattr(row, attribute) is None for row in results)
            lines.append(
                f"\nbaselines of {title}: {mean:.2f} times as long as the plan (geometric mean of "
                f"{len(known)}), at most {max(known):.2f}; none fits where a plan does: {alone}"
            )
            print(lines[-1])
    wrong = [text for row in results for text in row.wrong()]
    print("\n".join(wrong) or "no plan is slower than a baseline, over memory, or adds up wrong")
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
