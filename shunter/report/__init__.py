"""One offline HTML file for a run. No torch."""
