"""Algorithms for the Processing toolbox, models, batch and qgis_process."""
