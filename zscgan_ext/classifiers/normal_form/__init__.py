"""The normal form of a classifier's graph: one function per operator, layers as modules."""
