"""What `sfumato bench` measures: a recipe's network on this machine, and what to change."""
