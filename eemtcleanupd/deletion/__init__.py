"""Deletion: removal by descriptors, the trash, and the pool of workers."""
