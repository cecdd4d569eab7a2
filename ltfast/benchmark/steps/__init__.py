"""One file a method: its training step, with ltfast and as published."""
