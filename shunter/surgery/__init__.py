"""What changes a model's parts: adapters beside frozen weights, quantised weights, and merging them back."""
