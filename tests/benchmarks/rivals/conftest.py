"""Part of a profile that Galvatron ships (llama2-7b in bf16, 8 GPUs of one node), as its files."""

import json

import pytest

LAYER_MS = [  # of a sample, in micro-batches of 1 to 12
    4.396252679824831,
    4.295437526702879,
    4.16472320556641,
    4.124338817596435,
    4.015460739135742,
    4.033567365010579,
    3.9761613573346812,
    3.9369729995727534,
    3.95926776462131,
    3.940203971862794,
    3.9417554681951343,
    3.9181755065917976,
]
ENDS_MS = [
    6.286115455627439,
    3.8768817901611357,
    3.412370173136386,
    3.1102951049804695,
    3.095165557861327,
    2.9642045338948577,
    2.995887102399556,
    2.958646392822267,
    2.9111618041992213,
    2.9155407714843733,
    2.9238028786399157,
    2.932258224487304,
]
LAYER_MB = {
    "parameter_size": 778.2236328125,
    "tp_activation_per_bsz_dict": {
        "1": 514.5634765625,
        "2": 273.28173828125,
        "4": 136.885498046875,
        "8": 68.3204345703125,
        "checkpoint": 32.0,
    },
}
ENDS_MB = {
    "pp_off": {
        "model_states": dict(
            zip("1248", [4130.34765625, 2321.640625, 1289.1015625, 771.869140625], strict=True)
        ),
        "activation": dict(
            zip("1248", [841.58203125, 358.83984375, 163.58642578125, 78.13916015625], strict=True)
        ),
    },
    "pp_on_first": {
        "model_states": dict(
            zip(
                "1248",
                [2021.0048828125, 1266.76806640625, 775.68310546875, 387.841552734375],
                strict=True,
            )
        ),
        "activation": dict(
            zip(
                "1248",
                [198.7357177734375, 83.90301513671875, 51.85565185546875, 25.927825927734375],
                strict=True,
            )
        ),
    },
    "pp_on_last": {
        "model_states": dict(
            zip(
                "1248",
                [2021.0673828125, 1266.83056640625, 775.74560546875, 387.872802734375],
                strict=True,
            )
        ),
        "activation": dict(
            zip(
                "1248",
                [717.560302734375, 343.3006591796875, 171.1177978515625, 85.55889892578125],
                strict=True,
            )
        ),
    },
}
RING_GB_PER_SECOND = {
    "allreduce_size_8_consec_1": 154.203,
    "allreduce_size_4_consec_1": 159.119,
    "allreduce_size_4_consec_0": 155.815,
    "allreduce_size_2_consec_1": 138.156,
    "allreduce_size_2_consec_0": 151.344,
}
SEND_GB_PER_SECOND = {"pp_size_2": 163.671, "pp_size_4": 138.581, "pp_size_8": 109.45}
OVERLAP = 1.125552573612729
COLLECTIVE_MS = {  # of 1, 2, 4, ... 1024 MB
    ("allreduce", 2): [
        0.0703,
        0.07932,
        0.09008,
        0.1084,
        0.1434,
        0.2281,
        0.3924,
        0.7417,
        1.3887,
        2.6886,
        5.1594,
    ],
    ("allreduce", 4): [
        0.07981,
        0.09109,
        0.1091,
        0.1581,
        0.2183,
        0.3205,
        0.5848,
        1.0725,
        2.0709,
        3.7352,
        7.1874,
    ],
    ("allreduce", 8): [
        0.07895,
        0.1094,
        0.1333,
        0.1827,
        0.2941,
        0.4157,
        0.6519,
        1.2826,
        2.3584,
        4.6768,
        8.1409,
    ],
    ("all2all", 2): [
        0.0709,
        0.09942,
        0.1101,
        0.1047,
        0.1203,
        0.1788,
        0.2928,
        0.4756,
        0.8806,
        1.7752,
        3.4954,
    ],
    ("all2all", 4): [
        0.05244,
        0.07992,
        0.1065,
        0.1255,
        0.1514,
        0.2237,
        0.3654,
        0.6439,
        1.1567,
        2.1003,
        4.0389,
    ],
    ("all2all", 8): [
        0.1124,
        0.1135,
        0.1109,
        0.1502,
        0.2003,
        0.243,
        0.3997,
        0.7135,
        1.2981,
        2.4822,
        4.8151,
    ],
}


@pytest.fixture
def profiles(tmp_path):
    """A folder with the profile's files."""

    def by_batch(where, times):
        return {f"layertype_{where}_bsz{n}_seq2048": t for n, t in enumerate(times, 1)}

    ends = {f"other_memory_{where}_sp": {"2048": own} for where, own in ENDS_MB.items()}
    collectives = {
        f"{name}_size_{ranks}_{2**n}MB_time": time
        for (name, ranks), times in COLLECTIVE_MS.items()
        for n, time in enumerate(times)
    }
    for name, values in {
        "computation_profiling_bf16_llama_all": by_batch(0, LAYER_MS) | by_batch("other", ENDS_MS),
        "memory_profiling_bf16_llama_all": {"layertype_0_sp": {"2048": LAYER_MB}} | ends,
        "allreduce_bandwidth_1nodes_8gpus_per_node": RING_GB_PER_SECOND,
        "p2p_bandwidth_1nodes_8gpus_per_node": SEND_GB_PER_SECOND,
        "sp_time_1nodes_8gpus_per_node": collectives,
        "overlap_coefficient": {"overlap_coe": OVERLAP},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    return tmp_path
