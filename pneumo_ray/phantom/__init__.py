"""Synthetic chests with true boxes and true lungs."""
