"""Importers, one file per family of layers."""
