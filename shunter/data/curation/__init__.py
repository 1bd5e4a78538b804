"""Curation: operators over batches of documents, written once over arrays of characters and hashes."""
