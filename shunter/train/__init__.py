"""The step written out in order; optimizers, schedules, checkpoints, spikes."""
