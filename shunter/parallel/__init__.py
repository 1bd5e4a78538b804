"""Programs executed: stages, messages between ranks, backward passes in halves."""
