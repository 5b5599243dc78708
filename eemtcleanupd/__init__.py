"""eemtcleanupd: the retention daemon of an EEMT job store."""

__version__ = "0.1.0"
