"""draft"""
from ..ir.cluster import Cluster, Device, Link
def load_cluster(spec):
    if spec.startswith("local:"):
        n = int(spec[6:]); d = Device("cpu", 4 * 2**30, {"float32": 3e10}, 1e10, 1e-5, 2**28)
        return Cluster(spec, d, (Link("gloo", n, 1e-4, 1e9),))
    *sizes, kind = spec.split("x"); sizes = [int(s) for s in sizes]
    d = Device(kind, 80 * 10**9, {"float32": 67e12, "bfloat16": 989e12, "float16": 989e12, "float64": 67e12}, 3.35e12, 4e-6, 2**30)
    names = ["rack", "node", "nvlink"][-len(sizes):]
    bw = {"nvlink": 450e9, "node": 50e9, "rack": 50e9}
    return Cluster(spec, d, tuple(Link(n, s, 1e-5 if n != "nvlink" else 3e-6, bw[n]) for n, s in zip(names, sizes)))
