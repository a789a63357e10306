"""Every exception and warning of geosam2.

Each has a second parent from the standard library, so `except ValueError` keeps working for people
who do not know our names. A message carries the values and the remedy.
"""

from __future__ import annotations


class GeoSAM2Error(Exception):
    """Base of everything that geosam2 raises on purpose."""


class SourceError(GeoSAM2Error, OSError):
    """Imagery could not be opened, fetched or read."""


class GeoreferenceError(GeoSAM2Error, ValueError):
    """A scene has no usable place on the map, or two places do not fit together."""


class LevelError(GeoSAM2Error, ValueError):
    """A resolution, zoom or frame size that the scene cannot give."""


class PromptError(GeoSAM2Error, ValueError):
    """A point, box or mask that cannot be used: outside, on nodata, not finite, wrong CRS."""


class OptionError(GeoSAM2Error, ValueError):
    """A value of an option that makes no sense, or two that exclude each other."""


class ExportError(GeoSAM2Error, OSError):
    """Polygons or masks could not be written."""


class InterruptedRunError(GeoSAM2Error, RuntimeError):
    """A long run was stopped; the message names the state that it can be resumed from."""


class MissingDependencyError(GeoSAM2Error, ImportError):
    """An optional package is needed for what was asked."""


class GeoSAM2Warning(UserWarning):
    """Base of the warnings of geosam2."""


class ResolutionWarning(GeoSAM2Warning):
    """A resolution finer than the source holds was asked for."""


class ExportWarning(GeoSAM2Warning):
    """The output format cannot hold everything."""


class LeftOutWarning(GeoSAM2Warning):
    """Parts of a scene could not be looked at and are missing in the result."""


def import_optional(module: str, extra: str) -> object:
    """Import an optional module, or say which extra installs it.

    >>> import_optional("json", "none").loads("[1]")
    [1]
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise MissingDependencyError(
            f"{name} is needed for this: pip install 'geosam2[{extra}]'"
        ) from error
