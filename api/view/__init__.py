"""The picture of a plan, model or placement: one HTML file that needs nothing else, or other forms."""

from .exports.chrome_trace import chrome_trace as chrome_trace
from .exports.model_explorer import model_explorer as model_explorer
from .exports.plan_trace import plan_trace as plan_trace
from .exports.svg import svg as svg
from .from_model import report_of_model as report_of_model
from .from_placement import report_of_placement as report_of_placement
from .page import render as render
from .plans.beside import pages_of_plans as pages_of_plans
from .plans.from_plan import report_of_plan as report_of_plan
from .report import Report as Report

FORMATS = {
    "html": render,
    "svg": svg,
    "chrome-trace": chrome_trace,
    "model-explorer": model_explorer,
}
