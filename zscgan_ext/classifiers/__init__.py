"""Classifiers: loading them and their weights, and their graphs in a normal form."""
