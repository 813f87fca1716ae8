"""Every system with its figures, in one table. A figure that no source at hand gives is None."""

from __future__ import annotations

from plait.benchmarks.seed_systems import (
    attacks,
    bytes_sent,
    memory,
    placement,
    planned,
    slow_networks,
    unlike_machines,
)
from plait.benchmarks.seed_systems.figure import Figure, System

TITANS = "float32, Adam, 8 RTX TITAN at 4.87 GB/s as Galvatron's artifact measured them"
BATCHES = "best of 8 and 64 samples"


def counted(name: str, bits: int, conditions: str, paper: float | None = None) -> Figure:
    """How many times fewer bytes an algorithm sends than plain numbers of `bits`."""
    return Figure(
        quantity=f"bytes less than {bits} bits",
        unit="times",
        paper=paper,
        measure=bytes_sent.times_less(name, bits // 8),
        state="program",
        conditions=f"counted, {conditions}",
    )


SEARCHES = (
    System(
        "Galvatron",
        "PVLDB 16, 2022",
        (
            Figure(
                quantity="BERT-Huge at 8 GiB",
                unit="samples/s",
                paper=7.945,
                measure=lambda _: planned.bert_throughput(planned.TIGHT_GIB),
                state="program",
                conditions=f"{TITANS}; both predicted, each by its own cost model; {BATCHES}",
            ),
            Figure(
                quantity="BERT-Huge at 16 GiB",
                unit="samples/s",
                paper=15.057,
                measure=lambda _: planned.bert_throughput(planned.ROOMY_GIB),
                state="program",
                conditions=f"{TITANS}; both predicted, each by its own cost model; {BATCHES}",
            ),
            Figure(
                quantity="over the slowest pure strategy (most, of all models)",
                unit="%",
                paper=338,
                measure=planned.bert_over_worst_pure,
                state="program",
                conditions=f"BERT-Huge at 16 GiB; {TITANS}; one cost model",
            ),
            Figure(
                quantity="over two ranks of each kind (DeepSpeed-3D; most, of all models)",
                unit="%",
                paper=55,
                measure=planned.bert_over_several,
                state="program",
                conditions=f"BERT-Huge at 8 GiB; {TITANS}; one cost model",
            ),
            Figure(
                quantity="over Galvatron's own plan",
                unit="%",
                measure=planned.bert_over_galvatron,
                state="program",
                conditions=f"BERT-Huge at 8 GiB; {TITANS}; its plan found by its formulas, priced here",
            ),
            Figure(
                quantity="llama2-7b, 8 devices of 36 GiB, 64 samples",
                unit="samples/s",
                paper=15.276,
                measure=planned.on_galvatrons_costs,
                state="simulation",
                conditions="bf16; both by Galvatron's cost model (needs --data)",
            ),
        ),
    ),
    System(
        "Galvatron-BMW",
        "TKDE 2024",
        (
            Figure(
                quantity="over the best pure strategy (most, of all models)",
                unit="%",
                paper=530,
                measure=planned.bert_over_pure,
                state="program",
                conditions=f"BERT-Huge at 8 GiB with recomputation; {TITANS}; paper's figure recalled",
            ),
        ),
    ),
    System(
        "OSDP",
        "IJCAI 2023",
        (
            Figure(
                quantity="GPT-2 of 1.5 billion in 8 GB over FSDP",
                unit="%",
                paper=21.6,
                measure=planned.osdp_gain,
                state="simulation",
                conditions="priced by OSDP's formulas; the authors' FSDP leaves a third of 8 GB "
                "unused, ours none",
            ),
            Figure(
                quantity="the same by programs, products in slices",
                unit="%",
                measure=planned.slices_speed,
                state="program",
                long=True,
                conditions="priced: float32 Adam, 1,024 tokens a sample on 8 RTX TITAN of 8 GiB, layers "
                "under slice=8 over layers under zero3=8, each at its best of 8 to 128 samples; a slice "
                "travels beside the product with the one before",
            ),
            Figure(
                quantity="parameters of the widest layers that train in 8 GiB, over zero3",
                unit="times",
                measure=planned.slices_gain,
                state="program",
                long=True,
                conditions="priced: two layers of a GPT-2, float32 Adam, 8 samples of 512 tokens on "
                "8 RTX TITAN; products gather weights in slices of at most 25 MiB (slice=8)",
            ),
        ),
    ),
    System(
        "FlashFlex",
        "arXiv 2409.01143",
        (
            Figure(
                quantity="MFU behind equal devices, smallest",
                unit="points",
                paper=0.30,
                state="program",
                conditions="device groups run in programs; not priced on the paper's devices",
            ),
        ),
    ),
    System(
        "HotSPa",
        "SOSP 2024",
        (
            Figure(
                quantity="over Megatron-LM and DeepSpeed, most",
                unit="times",
                paper=2.99,
                state="program",
                measure=planned.two_lengths_gain,
                long=True,
                conditions="priced: Llama-3-8B, bf16, steps of 32 samples of 4,096 tokens and one of "
                "131,072 on 16 H100, over the best strategy that both lengths can run",
            ),
        ),
    ),
    System(
        "Hetu",
        "SCIS 2023",
        (
            Figure(
                quantity="memory of its reuse (equal sizes) over an arena",
                unit="%",
                measure=memory.over_reuse_of_equal_sizes,
                state="plan",
                conditions="GPT-2, 4 × 512 tokens, its rule written anew",
            ),
        ),
    ),
)

MEMORY = (
    System(
        "TSPLIT",
        "ICDE 2022",
        (
            Figure(
                quantity="largest batch over vDNN's rule (offload all)",
                unit="times",
                paper=10.5,
                measure=planned.batch_over_offload,
                state="program",
                conditions="BERT-Large, one RTX TITAN, priced; whole calls in chunks, not operators; "
                "the paper's is the largest of six models",
                long=True,
            ),
        ),
    ),
    System(
        "MEMO",
        "SIGMOD 2025",
        (
            Figure(
                quantity="MFU of 7B on 1,048,576 tokens",
                unit="%",
                paper=52.30,
                measure=planned.memo_mfu,
                state="plan",
                conditions="8 A800-80, bf16, priced; half of attention's flops count, under its "
                "causal mask; the paper's convention is not known",
                long=True,
            ),
        ),
    ),
    System(
        "Angel-PTM",
        "PVLDB 16, 2023",
        (
            Figure(
                quantity="largest model over zero3's",
                unit="%",
                paper=114.8,
                measure=planned.layers_on_host,
                state="program",
                conditions="priced: layers of a GPT of width 16,384, bf16, 8 samples of 1,024 tokens, "
                "zero3=8 on 8 A100-40 with 1 TB, --optimizer-on host over the device. The paper's is "
                "over systems that have host memory too; weights do not wait there here, nor on disk",
                long=True,
            ),
        ),
    ),
    System(
        "minimalloc",
        "ASPLOS 2023",
        (
            Figure(
                quantity="instances A to E packed at their capacity",
                unit="instances",
                paper=5,
                measure=memory.instances_packed,
                state="plan",
                conditions="within 60 s each, judged apart (needs --data)",
            ),
        ),
    ),
    System(
        "veScale-FSDP",
        "arXiv 2602.22437",
        (
            Figure(
                quantity="padding of DeepSeek-V3's flat buffers, at most",
                unit="%",
                paper=3,
                measure=memory.padding,
                state="plan",
                conditions="one layer on 1,024 ranks, blocks of 128 elements",
            ),
        ),
    ),
)

EXPERTS = (
    System(
        "FlexMoE",
        "SIGMOD 2023",
        (
            Figure(
                quantity="over DeepSpeed, mean",
                unit="times",
                paper=1.70,
                state="program",
                conditions="priced: a GPT of 12 layers of 64 experts (width 768), 512 samples of 1,024 "
                "tokens, bf16, dp=8,ep=8 on 64 A100, ten experts get 3 tokens in 4: a slot a rank for "
                "replicas over experts that stay. The paper's is of five models, measured",
                measure=planned.replicas_gain,
            ),
        ),
    ),
    System(
        "LSH-MoE",
        "NeurIPS 2024",
        (
            Figure(
                quantity="step over uncompressed exchange, most",
                unit="times",
                paper=2.2,
                state="program",
                conditions="priced: the GPT of FlexMoE's row, 256 samples of 1,024 tokens, ep=32 on 4 "
                "nodes of 8 A100, lsh-moe (at most one row in five) over rows as they are; the "
                "paper's is the largest of its models, measured",
                measure=planned.centroids_gain,
            ),
        ),
    ),
    System(
        "HET-GMP",
        "SIGMOD 2022",
        (
            Figure(
                quantity="less communication of embeddings, most",
                unit="%",
                paper=87.5,
                state="program",
                measure=bytes_sent.rows_asked_once,
                conditions="counted: rows that ranks ask for under rows=N, each once a step, less than "
                "one for every look-up; a rank has 1,024 samples of 26 categories, the n-th of a "
                "million read as often as 1/n. The paper's is of real click logs, partitioned, with "
                "stale replicas of hot rows, which are not here",
            ),
        ),
    ),
    System(
        "EvoMoE",
        "arXiv 2112.14397",
        (
            Figure(
                quantity="phases of a gate",
                unit="phases",
                state="program",
                conditions="plait.replan traces and plans the module anew between steps; parameters and "
                "states move in memory, equal to one process. When a gate grows sparse is the user's",
            ),
        ),
    ),
    System(
        "DeepSpeed-MoE",
        "ICML 2022",
        (
            Figure(
                quantity="training cost at equal quality",
                unit="times less",
                paper=5,
                state="program",
                conditions="expert ranks run, over nodes by a hierarchical all-to-all; the saving is "
                "the architecture's, not measured",
            ),
        ),
    ),
)

PIPELINES = (
    System(
        "SAPipe",
        "NeurIPS 2022",
        (
            Figure(
                quantity="over BytePS, most",
                unit="%",
                paper=157,
                measure=planned.stale_gain,
                state="program",
                conditions="BERT-Large, 64 samples, SGD, 4 machines of one H100 at 10 Gbit/s, priced, "
                "over the same without delay (stale-sgd)",
            ),
        ),
    ),
    System(
        "DSP",
        "CVPR 2020",
        (
            Figure(
                quantity="stages with unlike staleness",
                unit="stages",
                state="nothing",
                conditions="pipelines are synchronous; gradients of all stages may be K steps late "
                "alike",
            ),
        ),
    ),
    System(
        "Cross model parallelism",
        "ECML-PKDD 2023",
        (
            Figure(
                quantity="two copies in opposite order over one",
                unit="%",
                measure=planned.both_directions_gain,
                state="program",
                conditions="priced: BERT-Large, 64 samples in 8 micro-batches, pp=4 on 4 machines of an "
                "H100, --schedule bidirectional over 1f1b; sums of the copies' gradients are in it. "
                "Measured on 4 gloo ranks of waiting layers: 26.7 % (benchmarks/zero_bubble.py)",
            ),
        ),
    ),
    System(
        "Partial Reduce",
        "SIGMOD 2021",
        (
            Figure(
                quantity="over all-reduce on unlike machines, most",
                unit="times",
                paper=2,
                measure=unlike_machines.partial_reduce_gain,
                state="program",
                long=True,
                conditions="measured: 4 gloo ranks, of which one takes three times as long for a step; "
                "samples/s of groups of two (partial-reduce) over sums of all",
            ),
        ),
    ),
)

COMPRESSION = (
    System(
        "1-bit Adam",
        "ICML 2021",
        (
            Figure(
                quantity="bytes less over training",
                unit="times",
                paper=5,
                measure=bytes_sent.times_less("1-bit-adam", 2, warmup=0.15),
                state="program",
                conditions="counted, against 16 bits, 15 % of steps warm-up (BERT-Large's)",
            ),
        ),
    ),
    System(
        "1-bit LAMB",
        "HiPC 2022",
        (
            Figure(
                quantity="bytes less over training",
                unit="times",
                paper=4.6,
                measure=bytes_sent.times_less("1-bit-lamb", 2, warmup=1 / 6),
                state="program",
                conditions="counted, against 16 bits, a sixth of steps warm-up",
            ),
        ),
    ),
    System(
        "0/1 Adam",
        "ICLR 2023",
        (
            Figure(
                quantity="bytes less than 1-bit Adam, most",
                unit="%",
                paper=87,
                measure=bytes_sent.less_than(
                    "0/1-adam:every=1,doubles=32678,most=16", "1-bit-adam"
                ),
                state="program",
                conditions="counted in the long run, exchanges 16 steps apart",
            ),
        ),
    ),
    System(
        "SDP4Bit",
        "NeurIPS 2024",
        (
            Figure(
                quantity="GPT-18B on 128 H800 over Megatron-LM",
                unit="times",
                paper=4.08,
                measure=slow_networks.sdp4bit_speedup,
                state="program",
                conditions="priced, networks of the datasheet (needs --data)",
                long=True,
            ),
            Figure(
                quantity="bits of a weight on the wire",
                unit="bits",
                paper=4.016,
                measure=bytes_sent.sdp4bit_bits,
                state="program",
                conditions="counted, groups of 2,048",
            ),
        ),
    ),
    System(
        "ZeRO++",
        "arXiv 2306.10209",
        (
            Figure(
                quantity="bytes less than zero3",
                unit="times",
                paper=4,
                measure=bytes_sent.zeropp,
                state="program",
                conditions="counted, 16 bits; without copies inside a node (hpZ) both gathers travel",
            ),
        ),
    ),
    System(
        "CLAN",
        "arXiv 2105.07829",
        (
            counted(
                "random-k:rate=1000",
                16,
                "random-k:rate=1000; the optimizer clan (LANS) sends two bits",
                paper=333,
            ),
        ),
    ),
    System(
        "random-k",
        "arXiv 2105.07829",
        (counted("random-k:rate=1000", 32, "random-k:rate=1000 (by default 32)", paper=1000),),
    ),
    System("CSER", "NeurIPS 2020", (counted("cser", 32, "at its default rates and interval"),)),
    System(
        "Local AdaAlter",
        "arXiv 1911.09030",
        (counted("local-adaalter", 32, "every fourth step weights and squares"),),
    ),
    System(
        "Step-ahead and detached error feedback (DEF-A)",
        "AAAI 2021, arXiv 2004.05298",
        (counted("detached", 32, "a block of 32"),),
    ),
    System(
        "Krum, Zeno, Phocas, trimmed mean, median",
        "NeurIPS 2017, ICML 2018 and 2019",
        (
            Figure(
                quantity="attacks of three that Zeno outlives",
                unit="attacks",
                paper=3,
                measure=attacks.outlived,
                state="program",
                conditions="sign flip, inner product, a little is enough; 2 of 8 ranks lie; held-out "
                "loss within a tenth of honest training (Krum falls to the second)",
            ),
        ),
    ),
)

PLACEMENTS = (
    System(
        "Baechi",
        "SoCC 2020, arXiv 2301.08695",
        (
            Figure(
                quantity="the best of its placements over ours",
                unit="%",
                measure=placement.over_baechi,
                state="program",
                conditions="public graphs, parallel links, 2 s of search, its own evaluation's rules "
                "(needs --data)",
                long=True,
            ),
        ),
    ),
    System(
        "Degree hashing, S-PowerGraph, hypergraph cuts",
        "NeurIPS 2014, arXiv 1511.02586 and 1511.02595",
        (
            Figure(
                quantity="cuts as a start of placement",
                unit="cuts",
                state="nothing",
                conditions="placement starts from lists and chains",
            ),
        ),
    ),
)

SYSTEMS = SEARCHES + MEMORY + EXPERTS + PIPELINES + COMPRESSION + PLACEMENTS
