"""Restores runs from their checkpoints, and analyses them."""
