"""Networks: built by name, made safe for differential privacy, and read as named arrays."""
