"""Pixels of a layer: drawn by QGIS, at the layer's own resolutions, the layer alone.

What QGIS can draw can be segmented, with QGIS's authentication, proxy and cache. Failed tiles come
out transparent and QGIS reports no error for them, so transparency is measured.
"""

import math
import re
from typing import NamedTuple

from qgis.core import (
    QgsCoordinateTransform,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsProject,
    QgsRectangle,
)
from qgis.PyQt.QtCore import QObject, QSize, QTimer
from qgis.PyQt.QtGui import QColor, QImage

MISSING_SHARE = 0.02  # of a window; more transparent pixels than this are missing imagery
SMALLEST_SIDE = 256  # pixels; a coarser level than this would be of no use
MAX_CELLS = 2**31
_SECRET = re.compile(
    r"(?i)((?:api_?key|access_?token|token|key|password|passwd|pwd|secret|sig|signature|authcfg"
    r"|username|user)(?:=|%3D))[^&%\s'\"]+"
)
_LOGIN = re.compile(r"//[^/@\s]+@")


class Description(NamedTuple):
    """A raster layer as the engine needs to know it."""

    crs: str
    bounds: tuple
    resolutions: tuple
    origin: tuple
    name: str
    source: str
    remote: bool

    def message(self):
        """The `scene` of an `open` request."""
        return {
            "crs": self.crs,
            "bounds": list(self.bounds),
            "resolutions": list(self.resolutions),
            "origin": list(self.origin),
            "name": self.name,
            "source": self.source,
        }

    def level_for(self, cell):
        """The level whose cells come closest to `cell` (CRS units), by ratio."""
        ratios = [abs(math.log(resolution / cell)) for resolution in self.resolutions]
        return ratios.index(min(ratios))

    def enlargement_for(self, cell):
        """How many times finer than the raster's own cells `cell` is: 1, 2, 4 or 8."""
        ratio = self.resolutions[0] / cell
        return min((1, 2, 4, 8), key=lambda times: abs(math.log(times / ratio)))


def redact(source):
    """A data source without keys, passwords and logins.

    >>> redact("https://" + "me:mine" + "@host/{z}.png?key=abc&v=1")
    'https://***@host/{z}.png?key=***&v=1'
    """
    return _LOGIN.sub("//***@", _SECRET.sub(r"\1***", source))


def crs_text(crs):
    """An authority code if there is one, else WKT."""
    return crs.authid() or crs.toWkt()


def describe(layer):
    """Description of a raster layer; None if it has no coordinate system or extent."""
    extent, crs = layer.extent(), layer.crs()
    if extent.isEmpty() or not extent.isFinite() or not crs.isValid():
        return None
    provider = layer.dataProvider()
    remote = provider.name() not in ("gdal", "postgresraster", "virtualraster")
    if not remote and provider.xSize() > 0 and provider.ySize() > 0:
        cell = min(extent.width() / provider.xSize(), extent.height() / provider.ySize())
        resolutions = _doubled(cell, extent)
        origin = (extent.xMinimum(), extent.yMaximum())
    else:
        resolutions, origin = _remote_resolutions(layer, extent), (0.0, 0.0)
        if _is_web_mercator(crs):
            origin = (-math.pi * 6378137, math.pi * 6378137)  # corner of all XYZ tiles
    bounds = (extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum())
    source = redact(layer.publicSource())
    return Description(crs_text(crs), bounds, resolutions, origin, layer.name(), source, remote)


def date_of(layer):
    """When a raster layer is of: its fixed temporal range if it has one, else what it is called."""
    times = layer.temporalProperties()
    if times is not None and times.isActive():
        begin = times.fixedTemporalRange().begin()
        if begin.isValid():
            return begin.date().toString("yyyy-MM-dd")
    return layer.name()


def _doubled(cell, extent):
    """cell, 2 cells, 4 cells ... until the whole layer fits into one small window."""
    side = max(extent.width(), extent.height())
    count = max(1, min(20, math.ceil(math.log2(max(1.0, side / cell / SMALLEST_SIDE)))))
    return tuple(cell * 2**k for k in range(count))


def _remote_resolutions(layer, extent):
    """The service's own resolutions; a ladder of doubled cells for a service that has none."""
    native = [r for r in layer.dataProvider().nativeResolutions() if r > 0]
    if not native:
        metre = 1.0 if not layer.crs().isGeographic() else 1 / 111320
        native = [0.125 * metre * 2**k for k in range(20)]
    side = max(extent.width(), extent.height())
    return tuple(sorted(r for r in native if side / r < MAX_CELLS))[:40]


def _is_web_mercator(crs):
    return crs.authid() in ("EPSG:3857", "EPSG:900913", "EPSG:102100")


def map_settings(layer, bounds, width, height):
    """Settings that draw the layer alone, pixel for pixel, on a transparent background."""
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setDestinationCrs(layer.crs())
    settings.setTransformContext(QgsProject.instance().transformContext())
    settings.setOutputSize(QSize(width, height))
    settings.setOutputDpi(96)
    settings.setExtent(QgsRectangle(*bounds))
    settings.setBackgroundColor(QColor(0, 0, 0, 0))
    settings.setFlag(QgsMapSettings.Flag.DrawLabeling, False)
    return settings


def image_bytes(image):
    """RGBA bytes of an image, row by row."""
    image = image.convertToFormat(QImage.Format.Format_RGBA8888)
    bits = image.constBits()
    bits.setsize(image.sizeInBytes())
    data, row = bytes(bits), 4 * image.width()
    if image.bytesPerLine() == row:
        return data
    step = image.bytesPerLine()
    return b"".join(data[i : i + row] for i in range(0, step * image.height(), step))


def missing_share(data, bounds, extent):
    """Share of a window that should hold imagery (inside the extent) and is transparent, 0..1."""
    total = len(data) // 4
    left, bottom, right, top = bounds
    a, b, c, d = extent
    inside = max(0.0, min(right, c) - max(left, a)) * max(0.0, min(top, d) - max(bottom, b))
    expected = total * inside / ((right - left) * (top - bottom))
    if expected < 1:
        return 0.0
    drawn = total - data[3::4].count(0)
    return max(0.0, 1 - drawn / expected)


def cell_on_layer(canvas_settings, layer):
    """Size of a screen pixel in the layer's CRS units, at the centre of the map."""
    transform = QgsCoordinateTransform(
        canvas_settings.destinationCrs(), layer.crs(), QgsProject.instance()
    )
    centre, half = canvas_settings.visibleExtent().center(), canvas_settings.mapUnitsPerPixel() * 50
    box = QgsRectangle(centre.x() - half, centre.y() - half, centre.x() + half, centre.y() + half)
    box = transform.transformBoundingBox(box)
    return math.sqrt(box.width() * box.height()) / 100


class PixelSource(QObject):
    """Draws windows of one layer in the background (QGIS's render threads)."""

    def __init__(self, layer, description, timeout, parent=None):
        super().__init__(parent)
        self._layer, self.description, self._timeout = layer, description, timeout
        self._jobs = {}

    def request(self, need, bounds, width, height, done):
        """Draw a window; `done(need, bytes, missing share)`; share 1.0 when drawing timed out."""
        job = QgsMapRendererParallelJob(map_settings(self._layer, bounds, width, height))
        timer = QTimer(self)
        timer.setSingleShot(True)

        def finish(late=False):
            if self._jobs.pop(need, None) is None:
                return
            timer.stop()
            timer.deleteLater()
            if late:
                job.cancelWithoutBlocking()
                _keep_until_finished(job)
                done(need, b"", 1.0)
                return
            data = image_bytes(job.renderedImage())
            share = 0.0
            if self.description.remote:
                share = missing_share(data, bounds, self.description.bounds)
            done(need, data, share)

        job.finished.connect(finish)
        timer.timeout.connect(lambda: finish(late=True))
        self._jobs[need] = (job, timer)
        timer.start(int(self._timeout * 1000))
        job.start()

    def cancel(self):
        """Forget all windows that are being drawn."""
        jobs, self._jobs = self._jobs, {}
        for job, timer in jobs.values():
            timer.stop()
            timer.deleteLater()
            job.cancelWithoutBlocking()
            _keep_until_finished(job)


_ending = set()


def _keep_until_finished(job):
    """A render job that is deleted while its threads run blocks QGIS; keep it until they end."""
    if job.isActive():
        _ending.add(job)
        job.finished.connect(lambda: _ending.discard(job))
