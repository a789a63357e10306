"""GeoSAM2 for QGIS: click a feature on the map, get the whole of it as a polygon.

Copyright (C) 2026 GeoSAM2 contributors. This folder is free software: you can redistribute it and
modify it under the terms of the GNU General Public License, version 2 or (at your option) any later
version. See the file LICENSE.
"""


def classFactory(iface):
    """Called by QGIS."""
    from .plugin import GeoSAM2Plugin

    return GeoSAM2Plugin(iface)
