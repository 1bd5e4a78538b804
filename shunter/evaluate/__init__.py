"""Tasks, metrics with intervals, paired comparison."""
