"""Seconds and bytes of messages: collectives, stage transfers, compressed exchanges."""
