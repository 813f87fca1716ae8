"""Whether what a command prints under --json is one of the reports of its verb."""

import json
import sys


def checked(json_text):
    """`json_text` that raises where a verb prints what no struct of its own describes."""

    def text(data):
        printed = json_text(data)
        check(verb_of(sys._getframe(2)), json.loads(printed))
        return printed

    return text


def verb_of(frame):
    """The verb of the module that printed; an error is one of planning."""
    name = frame.f_globals["__name__"].rpartition(".")[2]
    return "plan" if name == "cli" else name


def check(verb, data):
    import msgspec

    from plait.api.serve.reports import REPORTS
    from plait.api.serve.verb_reports import VERB_REPORTS

    known = {**REPORTS, **VERB_REPORTS, "diff.against": REPORTS["compare"]}
    reasons = []
    for name, report in known.items():
        if name.partition(".")[0] == verb:
            try:
                msgspec.convert(data, report)
                return
            except msgspec.ValidationError as error:
                reasons.append(f"{name}: {error}")
    raise AssertionError(f"plait {verb} --json prints what no schema says: {reasons}")
