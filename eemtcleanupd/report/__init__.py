"""Reports on a job store: cleaned and held data, free space, and the forecast of when the disk is full."""
