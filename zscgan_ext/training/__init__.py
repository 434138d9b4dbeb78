"""Training: the loop of steps, how steps are executed, numbers that stay finite."""
