"""The commands, one module each; only this package parses arguments and prints."""
