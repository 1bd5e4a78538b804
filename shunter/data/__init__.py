"""Sources, curation, tokens, packing and the loader. Imports numpy and pyarrow, not torch."""
