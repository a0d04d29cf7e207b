"""Plain torch networks: configurations in `config` (no torch), modules made by `build`."""
