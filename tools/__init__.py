"""Programs that generate documentation or analyse the code, run as ``python -m tools.NAME``."""
