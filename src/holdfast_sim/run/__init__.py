"""Seeds played, one or many, and their histories."""
