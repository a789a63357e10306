"""The page in Settings > Options: everything has a default that needs no visit."""

from qgis.gui import QgsFileWidget, QgsOptionsPageWidget
from qgis.PyQt.QtWidgets import QDoubleSpinBox, QFormLayout, QLabel, QLineEdit, QSpinBox

from ..core import settings
from ..core.i18n import tr


class OptionsPage(QgsOptionsPageWidget):
    """Where the engine is, and what counts as low quality."""

    def __init__(self, changed, parent=None):
        super().__init__(parent)
        self.setObjectName("geosam2Options")
        self._changed = changed
        form = QFormLayout(self)
        self.python = QgsFileWidget()
        self.python.setFilePath(settings.get("python"))
        self.folder = QgsFileWidget()
        self.folder.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        self.folder.setFilePath(settings.get("engineFolder"))
        self.packages = QLineEdit(settings.get("packages"))
        self.device = QLineEdit(settings.get("device"))
        self.device.setPlaceholderText("cpu, cuda, mps")
        self.timeout = QSpinBox()
        self.timeout.setRange(5, 3600)
        self.timeout.setSuffix(" s")
        self.timeout.setValue(settings.get("pixelTimeout"))
        self.min_score = _share(settings.get("minScore"))
        self.min_stability = _share(settings.get("minStability"))
        self.found = QLabel(settings.find_python() or tr("none yet"))
        self.found.setWordWrap(True)
        form.addRow(tr("Python that has geosam2"), self.python)
        form.addRow(tr("Used now"), self.found)
        form.addRow(tr("Folder of the managed environment"), self.folder)
        form.addRow(tr("Packages to install"), self.packages)
        form.addRow(tr("Device (empty: automatic)"), self.device)
        form.addRow(tr("Wait for imagery at most"), self.timeout)
        form.addRow(tr("Flag objects below this score"), self.min_score)
        form.addRow(tr("Flag objects below this stability"), self.min_stability)

    def apply(self):
        """Called by QGIS when the user presses OK."""
        settings.put("python", self.python.filePath().strip())
        settings.put("engineFolder", self.folder.filePath().strip())
        settings.put("packages", self.packages.text().strip() or settings.DEFAULTS["packages"])
        settings.put("device", self.device.text().strip())
        settings.put("pixelTimeout", self.timeout.value())
        settings.put("minScore", self.min_score.value())
        settings.put("minStability", self.min_stability.value())
        self._changed()


def _share(value):
    box = QDoubleSpinBox()
    box.setRange(0.0, 1.0)
    box.setSingleStep(0.05)
    box.setValue(value)
    return box
