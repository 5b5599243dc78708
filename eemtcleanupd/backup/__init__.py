"""Backups of jobs: the archive format, its compression, and the folder that holds the archives."""
