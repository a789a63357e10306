"""What differs between QGIS 3.22 (Qt 5) and 4.x (Qt 6), in one place.

Importing this needs Qt only; functions that need QGIS import it when they are called.
"""

try:
    from qgis.PyQt.QtGui import QAction, QShortcut
except ImportError:  # Qt 5
    from qgis.PyQt.QtWidgets import QAction, QShortcut

__all__ = ["QAction", "QShortcut", "field", "polygon_type", "vector_layer_type"]


def polygon_type():
    """The geometry type "polygon" for rubber bands and layer filters."""
    from qgis.core import Qgis, QgsWkbTypes

    if hasattr(Qgis, "GeometryType"):
        return Qgis.GeometryType.Polygon
    return QgsWkbTypes.GeometryType.PolygonGeometry


def field(name, kind, length=0):
    """A QgsField of kind "int", "real", "text" or "datetime"; the type's class changed in 3.38."""
    from qgis.core import Qgis, QgsField

    if Qgis.QGIS_VERSION_INT >= 33800:
        from qgis.PyQt.QtCore import QMetaType

        kinds = {
            "int": QMetaType.Type.Int,
            "real": QMetaType.Type.Double,
            "text": QMetaType.Type.QString,
            "datetime": QMetaType.Type.QDateTime,
        }
    else:
        from qgis.PyQt.QtCore import QVariant

        kinds = {
            "int": QVariant.Int,  # noqa: QGS402
            "real": QVariant.Double,  # noqa: QGS402
            "text": QVariant.String,  # noqa: QGS402
            "datetime": QVariant.DateTime,  # noqa: QGS402
        }
    return QgsField(name, kinds[kind], len=length)


def vector_layer_type():
    """The layer type "vector"; moved to Qgis in 3.30."""
    from qgis.core import Qgis

    if hasattr(Qgis, "LayerType"):
        return Qgis.LayerType.Vector
    from qgis.core import QgsMapLayerType

    return QgsMapLayerType.VectorLayer
