"""Whole experiments as values, and the code that turns them into runs."""
