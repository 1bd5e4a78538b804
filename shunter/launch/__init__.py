"""Starting and ending processes: signals and fault injection."""
