"""Kernels in C++ for what torch does slowly on a CPU, compiled where they run."""
