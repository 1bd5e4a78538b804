"""Devices, nodes and links as data: described in YAML, measured, asked. Imports without torch."""
