"""Attacks that take too long for the tests, the source of docs/explanation/how-it-was-tested.md."""
