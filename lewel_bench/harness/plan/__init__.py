"""From a selection to jobs with keys: cells, suites, data sets, checks. Nothing is computed."""
