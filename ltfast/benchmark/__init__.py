"""How fast each op is here: beside what people would use instead, and as a share of what the machine can do."""
