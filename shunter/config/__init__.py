"""Strict typed configuration: YAML 1.2, dotted overrides, errors that name file, line and mend."""
