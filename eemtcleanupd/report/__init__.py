"""Reports on a job store: cleaned data, storage usage, and the forecast of when the disk will be full."""
