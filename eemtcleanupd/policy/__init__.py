"""Rules that decide what to clean, as pure functions."""
