"""Quality numbers for sets of images; import the modules by name."""
