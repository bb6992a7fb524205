"""Side-by-side measurements behind the numbers of the README: every claim of speed is a ratio within one run."""
