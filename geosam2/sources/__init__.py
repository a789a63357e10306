"""Readers: each turns one kind of imagery into windows of raw pixels on a ladder of lattices."""
