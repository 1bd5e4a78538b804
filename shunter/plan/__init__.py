"""Which layout to train with: formulas of size, work and memory, and rules that choose."""
