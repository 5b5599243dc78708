"""Living: the daemon's loop, its triggers, its configuration, and what it says of itself."""
