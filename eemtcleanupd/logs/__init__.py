"""Logging: handlers and formatters, and the log lines of events."""
