"""How fast a machine is, and what a network makes of it: timing, ceilings, FLOPs, operators."""
