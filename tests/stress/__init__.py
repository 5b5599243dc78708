"""Attacks that take too long for the tests: what docs/reliability.md has its figures from."""
