"""Readers: what people say about images, how far they agree, what to read next, and labels made of it."""
