"""Data-free quantization of image classifiers with a conditional generator."""
