"""How the server turns the hospitals' updates into the next model. NumPy only."""
