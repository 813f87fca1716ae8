"""Communication between ranks: groups, collectives, buckets, transports."""
