"""Measuring a quantized classifier on labelled images, beside the float one."""
