"""Weights as they travel: arrays and named tensors, their formats, and what they are like."""
