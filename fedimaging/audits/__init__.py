"""Attacks on our own promises: measured lower bounds that must stay under what is claimed."""
