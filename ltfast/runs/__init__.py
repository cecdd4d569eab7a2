"""What is done with a finished run: it is restored from its checkpoint, and looked into."""
