"""Damaged images of any size, read for a model and written back restored."""
