"""eemtcleanupd: a data retention daemon for EEMT job stores."""

__version__ = "1.0.0"
