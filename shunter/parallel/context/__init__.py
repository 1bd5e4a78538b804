"""Context parallelism: each rank holds a part of every row, and attention reaches over all parts."""
