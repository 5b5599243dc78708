"""Telling: each module is a plugin like any outsider's, small enough to read in a minute."""
