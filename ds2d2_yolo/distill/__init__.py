"""Wires a teacher to a student: shared levels, adapters, amplifiers, the four terms and their weights."""
