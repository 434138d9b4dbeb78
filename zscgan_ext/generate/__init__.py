"""Labelled synthetic images as files, for whatever else takes images."""
