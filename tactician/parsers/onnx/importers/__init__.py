"""Importers, one file per family of operators."""
