"""eemtcleanupd: a data retention daemon for EEMT job stores."""

__version__ = "0.1.0"
