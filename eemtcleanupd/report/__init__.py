"""Answers about a job store: the state of its jobs, cleaned data, storage usage, when the disk is full."""
