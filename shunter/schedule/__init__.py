"""Programs: build, check, simulate and read the order of work of a pipeline. Imports without torch."""
