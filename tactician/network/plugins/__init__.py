"""Plugins: interfaces, fields, dimension expressions, and the registry of creators."""
