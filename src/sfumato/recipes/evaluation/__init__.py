"""Quality numbers for runs and sets of images, with everything needed to reproduce them."""
