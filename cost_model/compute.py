"""draft"""
def op_seconds(work, flops, bytes, dtype, device):
    if work == "view": return 0.0
    return max(flops / (0.6 * device.peak(dtype)), bytes / (0.8 * device.memory_bandwidth_bytes_per_second)) + device.launch_overhead_seconds
