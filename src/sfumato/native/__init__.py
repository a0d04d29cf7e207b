"""Kernels for what torch does slowly: C++ on a CPU, Triton on a GPU, compiled where they run."""
