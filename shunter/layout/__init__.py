"""Layouts as data: which axis has which degree, who holds what, and what it costs to change."""
