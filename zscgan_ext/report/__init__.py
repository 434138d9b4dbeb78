"""One page about a finished run: what was lost, where, and what the images look like."""
