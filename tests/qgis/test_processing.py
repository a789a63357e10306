"""The algorithms through `processing.run`, as models and batch do, and with the cancel button."""

import math
import time

import pytest
import scenes
from geosam2_qgis.processing.provider import Provider
from qgis.core import (
    QgsApplication,
    QgsFeature,
    QgsGeometry,
    QgsPointXY,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProject,
    QgsVectorLayer,
)

pytestmark = pytest.mark.qgis


@pytest.fixture
def provider(qgis_app, qgis_processing):
    it = Provider()
    QgsApplication.processingRegistry().addProvider(it)
    yield it
    QgsApplication.processingRegistry().removeProvider(it)


def run(name, parameters, feedback=None):
    import processing

    return processing.run(f"geosam2:{name}", parameters, feedback=feedback)


class Feedback(QgsProcessingFeedback):
    """Collects what is said; can cancel itself."""

    def __init__(self, cancel_at=None):
        super().__init__()
        self.said, self._cancel_at = [], cancel_at
        self.progressChanged.connect(self._look)

    def _look(self, value):
        if self._cancel_at is not None and value >= self._cancel_at and not self.isCanceled():
            self.cancelled_at = time.monotonic()
            self.cancel()

    def pushWarning(self, text):
        self.said.append(text)

    def pushInfo(self, text):
        self.said.append(text)

    def reportError(self, text, fatalError=False):
        self.said.append(text)


def test_all_algorithms_are_there_with_help(provider):
    names = {a.name() for a in provider.algorithms()}
    assert names == {"segmentraster", "segmentpoints", "trackdates", "enginestatus"}
    for algorithm in provider.algorithms():
        assert algorithm.shortHelpString()
        assert not algorithm.icon().isNull()


def test_status(provider):
    status = run("enginestatus", {})["STATUS"]
    assert "backend fake" in status
    assert "protocol 1" in status


def test_everything_on_a_geotiff(provider, raster):
    done = run("segmentraster", {"INPUT": raster, "OUTPUT": "TEMPORARY_OUTPUT"})
    layer = done["OUTPUT"]
    features = list(layer.getFeatures())
    assert done["COUNT"] == len(features) == 2  # the pond and the twins; the land is background
    areas = sorted(f["area_m2"] for f in features)
    assert areas[1] == pytest.approx(math.pi * 100 * 60, rel=0.01)
    assert all(f.geometry().isGeosValid() for f in features)
    assert layer.crs().authid() == "EPSG:32633"


def test_an_extent_in_another_system_and_a_smallest_area(provider, raster):
    x, y = scenes.POND[:2]
    extent = f"{x - 150},{x + 150},{y - 100},{y + 100} [EPSG:32633]"
    done = run(
        "segmentraster",
        {"INPUT": raster, "EXTENT": extent, "MIN_AREA": 100, "OUTPUT": "TEMPORARY_OUTPUT"},
    )
    assert done["COUNT"] == 1
    with pytest.raises(QgsProcessingException, match="does not touch"):
        run(
            "segmentraster",
            {"INPUT": raster, "EXTENT": "0,1,0,1 [EPSG:32633]", "OUTPUT": "TEMPORARY_OUTPUT"},
        )


def test_everything_on_a_basemap_at_a_chosen_cell_size(provider, basemap):
    x, y, a, b = scenes.LAKE
    extent = f"{x - 2 * a},{x + 2 * a},{y - 2 * b},{y + 2 * b} [EPSG:3857]"
    done = run(
        "segmentraster",
        {"INPUT": basemap, "EXTENT": extent, "RESOLUTION": 38, "OUTPUT": "TEMPORARY_OUTPUT"},
    )
    (feature,) = done["OUTPUT"].getFeatures()
    assert feature["cell_size"] == pytest.approx(38.218, abs=0.01)
    assert feature.geometry().area() == pytest.approx(math.pi * a * b, rel=3e-3)


def prompts(crs, *geometries):
    layer = QgsVectorLayer(
        f"{'Point' if crs else 'Polygon'}?crs={crs or 'EPSG:32633'}", "prompts", "memory"
    )
    for geometry in geometries:
        feature = QgsFeature(layer.fields())
        feature.setGeometry(geometry)
        layer.dataProvider().addFeatures([feature])
    QgsProject.instance().addMapLayer(layer)
    return layer


def test_points_in_another_system(provider, raster):
    from qgis.core import QgsCoordinateReferenceSystem, QgsCoordinateTransform

    to_degrees = QgsCoordinateTransform(
        QgsCoordinateReferenceSystem("EPSG:32633"),
        QgsCoordinateReferenceSystem("EPSG:4326"),
        QgsProject.instance(),
    )
    places = [QgsPointXY(*scenes.POND[:2]), QgsPointXY(*scenes.TWINS[0]), QgsPointXY(0, 0)]
    geometries = [QgsGeometry.fromPointXY(to_degrees.transform(p)) for p in places[:2]]
    outside = QgsGeometry.fromPointXY(QgsPointXY(10, 10))
    feedback = Feedback()
    done = run(
        "segmentpoints",
        {
            "INPUT": raster,
            "PROMPTS": prompts("EPSG:4326", *geometries, outside),
            "OUTPUT": "TEMPORARY_OUTPUT",
        },
        feedback,
    )
    assert done["COUNT"] == 2
    assert any("outside the scene" in text for text in feedback.said)
    found = [f.geometry() for f in done["OUTPUT"].getFeatures()]
    assert found[0].contains(QgsGeometry.fromPointXY(places[0]))


def test_boxes(provider, raster):
    x, y = scenes.TWINS[0]
    box = QgsGeometry.fromWkt(
        f"Polygon(({x - 22} {y - 22}, {x + 18} {y - 22}, {x + 18} {y + 22}, {x - 22} {y + 22}, {x - 22} {y - 22}))"
    )
    done = run(
        "segmentpoints",
        {"INPUT": raster, "PROMPTS": prompts("", box), "OUTPUT": "TEMPORARY_OUTPUT"},
    )
    (feature,) = done["OUTPUT"].getFeatures()
    assert feature.geometry().boundingBox().xMaximum() <= x + 18


@pytest.fixture
def dated(tmp_path, qgis_new_project):
    """The GeoTIFF at three dates, in no order; at the second one the pond is dry."""
    from qgis.core import QgsRasterLayer

    layers = []
    for name, dry in (("pond_2010", False), ("pond_1990", False), ("pond_2000", True)):
        path = scenes.write_tif(tmp_path / f"{name}.tif", dry=dry)
        layers.append(QgsRasterLayer(str(path), name))
        QgsProject.instance().addMapLayer(layers[-1])
    return layers


def test_an_object_at_all_dates(provider, dated):
    points = prompts("EPSG:32633", QgsGeometry.fromPointXY(QgsPointXY(*scenes.POND[:2])))
    where = {"INPUT": dated, "PROMPTS": points, "OUTPUT": "TEMPORARY_OUTPUT"}
    done = run("trackdates", where)
    rows = {f["date"]: f for f in done["OUTPUT"].getFeatures()}
    assert done["COUNT"] == 3
    assert {date: f["found_by"] for date, f in rows.items()} == {
        "1990": "prompt",  # the earliest, whatever the order of the layers
        "2000": "absent",
        "2010": "click",
    }
    for date in ("1990", "2010"):
        assert rows[date]["area_m2"] == pytest.approx(math.pi * 100 * 60, rel=0.01)
        assert rows[date]["source"].endswith(f"pond_{date}.tif")
    assert not rows["2000"].hasGeometry()
    assert rows["2000"]["area_m2"] == 0


def test_the_layer_that_was_clicked_on_and_its_temporal_range(provider, dated):
    from qgis.core import QgsDateTimeRange
    from qgis.PyQt.QtCore import QDate, QDateTime, QTime

    times = dated[0].temporalProperties()
    begin = QDateTime(QDate(1985, 7, 1), QTime(0, 0))
    times.setFixedTemporalRange(QgsDateTimeRange(begin, begin.addDays(30)))
    times.setIsActive(True)
    points = prompts("EPSG:32633", QgsGeometry.fromPointXY(QgsPointXY(*scenes.POND[:2])))
    where = {"INPUT": dated, "PROMPTS": points, "OUTPUT": "TEMPORARY_OUTPUT"}
    done = run("trackdates", {**where, "START": dated[1]})
    dates = {f["date"]: f["found_by"] for f in done["OUTPUT"].getFeatures()}
    assert dates == {"1990": "prompt", "2000": "absent", "1985-07-01": "click"}
    begins = {f["date"]: f["begin"].toString("yyyy-MM-dd") for f in done["OUTPUT"].getFeatures()}
    assert begins == {"1990": "1990-01-01", "2000": "2000-01-01", "1985-07-01": "1985-07-01"}
    assert done["OUTPUT"].fields().names()[:5] == ["id", "object", "date", "begin", "found_by"]


def test_names_that_are_no_dates_have_no_begin():
    from geosam2_qgis.processing.runs import begin_of

    assert begin_of("before") is None
    assert begin_of("2020-03").toString("yyyy-MM-dd") == "2020-03-01"


def test_stacks_that_are_none_are_refused(provider, dated):
    points = prompts("EPSG:32633", QgsGeometry.fromPointXY(QgsPointXY(*scenes.POND[:2])))
    where, feedback = {"PROMPTS": points, "OUTPUT": "TEMPORARY_OUTPUT"}, Feedback()
    with pytest.raises(QgsProcessingException):
        run("trackdates", {**where, "INPUT": dated[:2], "START": dated[2]}, feedback)
    assert "pond_2000 is none of the layers of imagery." in feedback.said
    with pytest.raises(QgsProcessingException, match="2 to 1000 dates, not 1"):
        run("trackdates", {**where, "INPUT": dated[:1]})
    dated[1].setName("pond_2010")
    with pytest.raises(QgsProcessingException, match="two scenes are of 2010"):
        run("trackdates", {**where, "INPUT": dated})


def test_cancel_is_quick(provider, raster, plugin_settings):
    plugin_settings.setValue("geosam2/engineArguments", "--backend fake --delay 0.5")
    feedback = Feedback(cancel_at=10)
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("geosam2:segmentraster")
    parameters = {"INPUT": raster, "OUTPUT": "TEMPORARY_OUTPUT"}
    _, worked = algorithm.run(parameters, context, feedback)
    assert feedback.isCanceled()
    assert time.monotonic() - feedback.cancelled_at < 4
    assert worked  # what was finished stays in the sink; Processing itself discards it


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("", "no engine yet"),
        ("/no/such/python", "cannot be started"),
        ("/usr/bin/python3", "has no geosam2"),
    ],
)
def test_without_an_engine_the_reason_is_one_sentence(provider, plugin_settings, python, words):
    plugin_settings.setValue("geosam2/python", python)
    with pytest.raises(QgsProcessingException, match=words):
        run("enginestatus", {})
