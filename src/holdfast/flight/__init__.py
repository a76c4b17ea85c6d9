"""The flight recorder: what this host's holdfastd did and decided, kept over restarts and resets."""
