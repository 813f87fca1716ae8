"""Programs for the ranks at hand."""
