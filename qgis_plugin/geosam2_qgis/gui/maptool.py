"""The map tool: clicks, boxes and keys on the canvas."""

from qgis.core import QgsGeometry, QgsPointXY, QgsRectangle
from qgis.gui import QgsMapTool, QgsRubberBand
from qgis.PyQt.QtCore import QPoint, Qt, pyqtSignal
from qgis.PyQt.QtGui import QColor

from ..compat import polygon_type

DRAG = 6  # pixels; a shorter drag is a click


class ClickTool(QgsMapTool):
    """Left = include, right = exclude, drag = box; keys go to `key`."""

    clicked = pyqtSignal(QgsPointXY, int)
    """Map position and label."""
    boxed = pyqtSignal(QgsGeometry)
    """The box's four corners on the map, as a polygon (a rotated map turns it)."""
    key = pyqtSignal(str)
    """accept, back, alternative."""

    KEYS = {
        Qt.Key.Key_Return: "accept",
        Qt.Key.Key_Enter: "accept",
        Qt.Key.Key_Backspace: "back",
        Qt.Key.Key_A: "alternative",
    }

    def __init__(self, canvas):
        super().__init__(canvas)
        self.setCursor(Qt.CursorShape.CrossCursor)
        self._start = None
        self._band = QgsRubberBand(canvas, polygon_type())
        self._band.setStrokeColor(QColor(31, 155, 214))
        self._band.setFillColor(QColor(31, 155, 214, 30))
        self._band.setLineStyle(Qt.PenStyle.DashLine)

    def canvasPressEvent(self, event):
        if event.button() == Qt.MouseButton.LeftButton:
            self._start = event.pixelPoint()

    def canvasMoveEvent(self, event):
        if self._start is not None and self._far(event.pixelPoint()):
            self._band.setToGeometry(self._corners(event.pixelPoint()), None)

    def canvasReleaseEvent(self, event):
        start, self._start = self._start, None
        self._band.reset(polygon_type())
        if event.button() == Qt.MouseButton.RightButton:
            self.clicked.emit(event.mapPoint(), 0)
        elif event.button() == Qt.MouseButton.LeftButton and start is not None:
            here = event.pixelPoint()
            if abs(here.x() - start.x()) >= DRAG and abs(here.y() - start.y()) >= DRAG:
                self.boxed.emit(self._corners(here, start))
            else:
                self.clicked.emit(event.mapPoint(), 1)

    def keyPressEvent(self, event):
        name = self.KEYS.get(Qt.Key(event.key()))
        if name:
            self.key.emit(name)
            event.ignore()  # for QgsMapCanvas this means: handled by the tool
        else:
            event.accept()

    def deactivate(self):
        self._start = None
        self._band.reset(polygon_type())
        super().deactivate()

    def remove(self):
        """Take the rubber band off the canvas."""
        scene = self.canvas().scene()
        if scene is not None:
            scene.removeItem(self._band)

    def _far(self, here):
        return (here - self._start).manhattanLength() >= DRAG

    def _corners(self, here, start=None):
        start = start or self._start
        corners = (
            start, QPoint(here.x(), start.y()), here, QPoint(start.x(), here.y()), start,
        )  # fmt: skip
        return QgsGeometry.fromPolygonXY([[self.toMapCoordinates(corner) for corner in corners]])


def bounding_box(geometry):
    """(left, bottom, right, top) of a geometry."""
    box = QgsRectangle(geometry.boundingBox())
    return (box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum())
