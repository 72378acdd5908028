"""Weights: the formats of arrays and named tensors, their checks and their statistics."""
