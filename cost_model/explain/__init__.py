"""Why a plan costs what it costs, term by term."""
