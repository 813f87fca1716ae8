"""Clusters: devices, links, measured curves."""
