"""Plans for heterogeneous clusters: device groups, pipeline replicas, and their micro-batches."""
