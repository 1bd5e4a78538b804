"""Reinforcement learning as a dataflow of roles on pools of processes (arXiv 2409.19256)."""
