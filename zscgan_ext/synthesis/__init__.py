"""Generator learning: the conditional generator, and the teacher that it learns from."""
