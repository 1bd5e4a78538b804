"""Measurements, each against its baseline."""
