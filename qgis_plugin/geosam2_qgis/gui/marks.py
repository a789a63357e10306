"""What is drawn over the map: the shape so far, the clicks, the box."""

from qgis.core import QgsCoordinateTransform, QgsGeometry, QgsPointXY, QgsProject, QgsRectangle
from qgis.gui import QgsRubberBand, QgsVertexMarker
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QColor

from ..compat import polygon_type

SHAPE, BOX = QColor(31, 155, 214), QColor(255, 200, 0)
INCLUDE, EXCLUDE = QColor(20, 160, 60), QColor(214, 40, 40)


class Marks:
    """Owns everything that the plugin draws on a canvas; positions are in a layer's CRS."""

    def __init__(self, canvas):
        self._canvas = canvas
        self._shape = self._band(SHAPE, 70, 2, Qt.PenStyle.SolidLine)
        self._box = self._band(BOX, 0, 2, Qt.PenStyle.DashLine)
        self._points = []

    def _band(self, colour, opacity, width, style):
        band = QgsRubberBand(self._canvas, polygon_type())
        band.setStrokeColor(colour)
        fill = QColor(colour)
        fill.setAlpha(opacity)
        band.setFillColor(fill)
        band.setWidth(width)
        band.setLineStyle(style)
        return band

    def show_shape(self, geometry, crs, sketch=False):
        """The shape so far, or None; a sketch, which a better one will replace, is dashed."""
        style = Qt.PenStyle.DashLine if sketch else Qt.PenStyle.SolidLine
        self._shape.setLineStyle(style)
        self._shape.reset(polygon_type())
        if geometry is not None:
            self._shape.setToGeometry(QgsGeometry(geometry), crs)

    @property
    def shape(self):
        """The geometry that is shown, in map coordinates (empty if none)."""
        return self._shape.asGeometry()

    def show_prompt(self, points, box, crs):
        """Clicks [((x, y), label), ...] and a box."""
        self._remove_points()
        target = self._canvas.mapSettings().destinationCrs()
        transform = QgsCoordinateTransform(crs, target, QgsProject.instance())
        for (x, y), label in points:
            self._points.append(self._marker(transform.transform(QgsPointXY(x, y)), label))
        self._box.reset(polygon_type())
        if box:
            self._box.setToGeometry(QgsGeometry.fromRect(QgsRectangle(*box)), crs)

    def _marker(self, place, label):
        marker = QgsVertexMarker(self._canvas)
        marker.setCenter(place)
        kind = QgsVertexMarker.IconType
        marker.setIconType(kind.ICON_CIRCLE if label else kind.ICON_X)
        marker.setColor(INCLUDE if label else EXCLUDE)
        marker.setFillColor(QColor(255, 255, 255, 200))
        marker.setIconSize(11)
        marker.setPenWidth(3)
        return marker

    def _remove_points(self):
        for marker in self._points:
            self._canvas.scene().removeItem(marker)
        self._points = []

    def clear(self):
        """Show nothing."""
        self._remove_points()
        self._shape.reset(polygon_type())
        self._box.reset(polygon_type())

    def remove(self):
        """Take everything off the canvas for good."""
        self._remove_points()
        for band in (self._shape, self._box):
            self._canvas.scene().removeItem(band)
