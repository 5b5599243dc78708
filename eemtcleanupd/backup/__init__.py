"""Backups of jobs: the archive format, its compression, and the folder of the archives."""
