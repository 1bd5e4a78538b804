"""Programs that nobody vouches for, each in a fresh fork that can reach nothing."""
