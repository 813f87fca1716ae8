"""draft"""
def collective_seconds(kind, bytes, size, stride, cluster):
    if size == 1 or kind in ("cut", "share"): return 0.0
    link = cluster.level_for(stride, size)
    f = {"all_reduce": 2 * (size - 1) / size, "all_gather": (size - 1) / size, "reduce_scatter": (size - 1) / size, "all_to_all": (size - 1) / size, "send": 1, "broadcast": 1}[kind]
    return f * bytes / link.bandwidth_bytes_per_second + link.latency_seconds * (size - 1)
