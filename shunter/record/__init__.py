"""What happened: events, metrics, spans, timelines and the named points of a run. No torch."""
