"""Learning from preferences and rewards: objectives, advantages, rewards, verifiers, the sandbox."""
