"""Arithmetic only: blocks, families, and the maps to and from Hugging Face directories."""
