"""What images may be at most."""

LARGEST_IMAGE_SIZE = 4096  # pixels
