"""Translations: every text that a person reads goes through `tr`."""

from pathlib import Path

from qgis.PyQt.QtCore import QCoreApplication, QTranslator

CONTEXT = "GeoSAM2"
FOLDER = Path(__file__).parent.parent / "i18n"


def tr(text, **values):
    """The text in the user's language; `{name}` places are filled from the keyword arguments."""
    translated = QCoreApplication.translate(CONTEXT, text)
    return translated.format(**values) if values else translated


def install_translator(locale):
    """Use i18n/geosam2_<language>.qm if there is one; keep the returned object alive."""
    translator = QTranslator()
    for name in (locale, locale.partition("_")[0]):
        if translator.load(str(FOLDER / f"geosam2_{name}.qm")):
            QCoreApplication.installTranslator(translator)
            return translator
    return None
