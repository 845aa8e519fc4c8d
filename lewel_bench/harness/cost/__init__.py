"""Cost estimates and budgets of jobs."""
