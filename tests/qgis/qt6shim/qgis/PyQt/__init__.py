"""qgis.PyQt on PyQt6."""
