"""The report: figures, pages, measures, plots."""
