"""Stands for QGIS 4 where only Qt 6 is needed: tests of the modules that import qgis.PyQt alone."""
