"""Pipelines over time: closed form, event simulation, changed conditions."""
