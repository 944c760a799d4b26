"""A run: its folder, its live view, its report."""
