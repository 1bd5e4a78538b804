"""Builders of orders: what each rank of a pipeline does, one after the other."""
