"""The job graph and the artefact store. No torch, and no knowledge of what a job does."""
