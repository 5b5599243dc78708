"""`eemtcleanupd doctor`: checks what cleanup needs, and advises how to fix it."""
