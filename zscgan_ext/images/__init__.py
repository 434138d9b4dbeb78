"""Images: what a classifier takes, and reading labelled ones."""
