"""Thin commands: arguments in, sentences out, no logic."""
