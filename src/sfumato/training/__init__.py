"""Training: noise levels, objectives, augmentation, averaging, the loop, checkpoints."""
