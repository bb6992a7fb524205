"""Train an explainable pneumonia classifier for children's chest radiographs, and score archives with it."""

__version__ = "0.1.0"
