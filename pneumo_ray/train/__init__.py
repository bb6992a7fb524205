"""Training on Ray: what is saved, one worker's loop, the trainer that runs it."""
