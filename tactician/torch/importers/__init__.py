"""Importers of ATen overloads, one file per family."""
