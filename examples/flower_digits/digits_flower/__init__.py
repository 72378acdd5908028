"""A Flower app: handwritten digits, classified by a linear model."""
