"""Grids, animations, plots and the self-contained HTML page; import the modules by name."""
