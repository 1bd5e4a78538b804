"""The tasks of recipes/tasks in plain torch, to count what shunter takes off a person.

Each does what `kind: custom` does for it: tensor and data parallelism, an order from a seed, every example
once, checkpoints and resume, evaluation, the best state, records.
`torchrun --nproc-per-node 2 -m bench.bare.sft`
"""
