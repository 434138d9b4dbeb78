"""Quantizing a classifier: schemes, quantizers, conversion, calibration, fine-tuning."""
