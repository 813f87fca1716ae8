"""The picture of a plan or model: one HTML file that needs nothing else."""

from .page import render as render
