"""The picture of a plan, model or placement: one HTML file that needs nothing else, or other forms."""

from .chrome_trace import chrome_trace as chrome_trace
from .from_model import report_of_model as report_of_model
from .from_placement import report_of_placement as report_of_placement
from .from_plan import report_of_plan as report_of_plan
from .model_explorer import model_explorer as model_explorer
from .page import render as render
from .report import Report as Report
from .svg import svg as svg

FORMATS = {
    "html": render,
    "svg": svg,
    "chrome-trace": chrome_trace,
    "model-explorer": model_explorer,
}
