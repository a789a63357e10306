"""Imagery with known answers: a GeoTIFF and a local XYZ server, drawn from formulas. numpy only."""

from __future__ import annotations

import json
import math
import struct
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote

import numpy as np

WATER, LAND, ROOF, SAND = (30, 60, 150), (90, 140, 60), (200, 60, 50), (210, 190, 130)
HALF = math.pi * 6378137

# the GeoTIFF: 0.5 m cells, 1200 x 1200, EPSG:32633
ORIGIN, CELL, SIDE = (500000.0, 5300600.0), 0.5, 1200
POND = (500200.0, 5300400.0, 100.0, 60.0)  # centre x, centre y, semi-axes: fits one frame or two
TWINS = ((500400.0, 5300200.0), (500440.0, 5300200.0))  # two round roofs that touch
TWIN_RADIUS = 22.0
# the lake of the XYZ server, EPSG:3857, semi-axes as on the map
LAKE = (1_200_000.0, 6_100_000.0, 9000.0, 6000.0)
LAKE_ZOOM = 13


def inside(x, y, ellipse):
    """Is the map position inside an ellipse (centre x, y, semi-axes)?"""
    return ((x - ellipse[0]) / ellipse[2]) ** 2 + ((y - ellipse[1]) / ellipse[3]) ** 2 <= 1


def colours_tif(x, y):
    """(H, W, 3) colours of the GeoTIFF."""
    image = np.empty((*np.broadcast(x, y).shape, 3), np.uint8)
    image[:] = LAND
    image[inside(x, y, POND)] = WATER
    for centre in TWINS:
        image[inside(x, y, (*centre, TWIN_RADIUS, TWIN_RADIUS))] = ROOF
    return image


def colours_xyz(x, y):
    """(H, W, 3) colours of the basemap."""
    image = np.empty((*np.broadcast(x, y).shape, 3), np.uint8)
    image[:] = LAND
    image[inside(x, y, LAKE)] = WATER
    return image


def tif_pixels(dry=False):
    """The GeoTIFF's pixels; with land where the pond was if it is dry."""
    x = ORIGIN[0] + (np.arange(SIDE) + 0.5) * CELL
    y = ORIGIN[1] - (np.arange(SIDE) + 0.5) * CELL
    image = colours_tif(x[None, :], y[:, None])
    if dry:
        image[inside(x[None, :], y[:, None], POND)] = LAND
    return image


def write_tif(path, dry=False):
    """Write the GeoTIFF with GDAL."""
    from osgeo import gdal, osr

    gdal.UseExceptions()
    pixels = tif_pixels(dry)
    data = gdal.GetDriverByName("GTiff").Create(str(path), SIDE, SIDE, 3, gdal.GDT_Byte)
    data.SetGeoTransform((ORIGIN[0], CELL, 0, ORIGIN[1], 0, -CELL))
    system = osr.SpatialReference()
    system.ImportFromEPSG(32633)
    data.SetProjection(system.ExportToWkt())
    for band in range(3):
        data.GetRasterBand(band + 1).WriteArray(pixels[..., band])
        data.GetRasterBand(band + 1).SetColorInterpretation(gdal.GCI_RedBand + band)
    data = None
    return Path(path)


def tile_pixels(z, col, row):
    """(256, 256, 3) pixels of a tile."""
    cell = 2 * HALF / 2**z / 256
    x = -HALF + (col * 256 + np.arange(256) + 0.5) * cell
    y = HALF - (row * 256 + np.arange(256) + 0.5) * cell
    return colours_xyz(x[None, :], y[:, None])


def png(pixels):
    """A PNG of (H, W, 3) uint8 pixels."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + pixels[r].tobytes() for r in range(height))

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )


CAPABILITIES = """<?xml version="1.0"?>
<WMS_Capabilities version="1.3.0" xmlns="http://www.opengis.net/wms"
    xmlns:xlink="http://www.w3.org/1999/xlink">
<Service><Name>WMS</Name><Title>Imagery</Title></Service>
<Capability><Request>
<GetCapabilities><Format>text/xml</Format><DCPType><HTTP><Get>
<OnlineResource xlink:href="{url}"/></Get></HTTP></DCPType></GetCapabilities>
<GetMap><Format>image/png</Format><DCPType><HTTP><Get>
<OnlineResource xlink:href="{url}"/></Get></HTTP></DCPType></GetMap>
</Request><Exception><Format>XML</Format></Exception>
<Layer><Title>All</Title><CRS>EPSG:3857</CRS><Layer><Name>lake</Name><Title>Lake</Title>
<CRS>EPSG:3857</CRS><EX_GeographicBoundingBox><westBoundLongitude>0</westBoundLongitude>
<eastBoundLongitude>20</eastBoundLongitude><southBoundLatitude>40</southBoundLatitude>
<northBoundLatitude>55</northBoundLatitude></EX_GeographicBoundingBox>
<BoundingBox CRS="EPSG:3857" minx="0" miny="5000000" maxx="2200000" maxy="7300000"/>
</Layer></Layer></Capability></WMS_Capabilities>"""


def wms_uri(port, more=""):
    """The data source of a WMS layer in QGIS."""
    url = f"http://127.0.0.1:{port}/wms"
    return f"crs=EPSG:3857&dpiMode=7&format=image/png&layers=lake&styles=&url={url}{more}"


class Photo:
    """Web tiles of a GeoTIFF in EPSG:3857."""

    def __init__(self, path):
        from osgeo import gdal

        gdal.UseExceptions()
        self._gdal, self._path = gdal, path

    def __call__(self, z, col, row):
        """(256, 256, 3) pixels of a tile."""
        side = 2 * HALF / 2**z
        left, top = -HALF + col * side, HALF - row * side
        data = self._gdal.Warp(
            "", self._path, format="MEM", width=256, height=256, resampleAlg="average",
            outputBounds=(left, top - side, left + side, top),
        )  # fmt: skip
        return np.ascontiguousarray(np.moveaxis(data.ReadAsArray()[:3], 0, 2))


class Tiles(BaseHTTPRequestHandler):
    """Serves /{z}/{x}/{y}.png and /wms; /mood?mode=404|503|hang|slow|ok&every=N; /log tells."""

    draw = staticmethod(tile_pixels)

    protocol_version = "HTTP/1.1"
    mood = {"mode": "ok", "every": 2}
    seen = []

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/log":
            return self._answer(200, json.dumps(self.seen).encode(), "application/json")
        if path == "/mood":
            for part in self.path.partition("?")[2].split("&"):
                key, _, value = part.partition("=")
                self.mood[key] = int(value) if value.isdigit() and key == "every" else value
            return self._answer(200, b"ok", "text/plain")
        if path == "/wms":
            return self._wms(dict(parse_qsl(self.path.partition("?")[2].upper())))
        z, col, row = (int(v) for v in path.strip("/").removesuffix(".png").split("/"))
        self.seen.append(
            [z, col, row, self.headers.get("Referer", ""), self.path.partition("?")[2]]
        )
        mode = self.mood["mode"]
        if mode == "slow":
            time.sleep(2)
        elif mode != "ok" and (col + row) % self.mood["every"] == 0:
            if mode == "hang":
                time.sleep(30)
            return self._answer(504 if mode == "hang" else int(mode), b"no", "text/plain")
        return self._answer(200, png(self.draw(z, col, row)), "image/png")

    def _wms(self, query):
        self.seen.append([query.get("REQUEST"), self.headers.get("Authorization", "")])
        if query.get("REQUEST") != "GETMAP":
            url = f"http://{self.headers['Host']}/wms?"
            return self._answer(200, CAPABILITIES.format(url=url).encode(), "text/xml")
        left, bottom, right, top = (float(v) for v in query["BBOX"].split(","))
        width, height = int(query["WIDTH"]), int(query["HEIGHT"])
        x = left + (np.arange(width) + 0.5) * (right - left) / width
        y = top - (np.arange(height) + 0.5) * (top - bottom) / height
        return self._answer(200, png(colours_xyz(x[None, :], y[:, None])), "image/png")

    def _answer(self, code, body, kind):
        try:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            return

    def log_message(self, *_):
        return


def serve(draw=tile_pixels):
    """Start a tile server in a thread; returns (server, port)."""
    own = {"mood": {"mode": "ok", "every": 2}, "seen": [], "draw": staticmethod(draw)}
    handler = type("Tiles", (Tiles,), own)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, server.server_address[1]


def xyz_uri(port, more="", version=1, zmax=18):
    """The data source of an XYZ layer in QGIS."""
    url = quote(f"http://127.0.0.1:{port}/{{z}}/{{x}}/{{y}}.png?v={version}", safe=":/")
    return f"type=xyz&url={url}&zmin=0&zmax={zmax}{more}"


if __name__ == "__main__":  # a server in its own process: prints its port and waits for its end
    server, port = serve(*map(Photo, sys.argv[1:]))
    print(port, flush=True)
    sys.stdin.read()
