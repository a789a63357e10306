"""Synthetic scenes with known polygons, files, local servers and hypothesis strategies.

For tests, benchmarks and notebooks; nothing else in geosam2 imports it.
"""

from geosam2.testing.files import write_geotiff, write_repeated_vrt, write_xyz_tiles
from geosam2.testing.scenes import FRAME, OVERLAP, SyntheticScene, frames_touched, synthetic_scene
from geosam2.testing.server import Request, Server, serve_folder
from geosam2.testing.strategies import geoboxes, masks, polygons

__all__ = [
    "FRAME",
    "OVERLAP",
    "Request",
    "Server",
    "SyntheticScene",
    "frames_touched",
    "geoboxes",
    "masks",
    "polygons",
    "serve_folder",
    "synthetic_scene",
    "write_geotiff",
    "write_repeated_vrt",
    "write_xyz_tiles",
]
