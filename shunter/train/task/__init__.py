"""A person's own task as three functions: collate, loss, predict."""
