"""Training on Ray: config, state, training loop, trainer."""
