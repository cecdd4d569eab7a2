"""What the ops share, one thing a file. Nothing here knows an op."""
