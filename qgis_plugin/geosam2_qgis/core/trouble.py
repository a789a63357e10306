"""What went wrong, in a form that every part of the plugin shows in the same way."""

from typing import NamedTuple

from .i18n import tr


class Trouble(NamedTuple):
    """One problem."""

    kind: str
    """engine_missing, engine_start, engine_version, engine_died, prompt, pixels, model, ..."""
    message: str
    """One sentence, for the message bar."""
    hint: str = ""
    """What to do about it."""
    detail: str = ""
    """For the log and for a report."""

    def sentence(self):
        """Message and hint as one line."""
        return f"{self.message} {self.hint}".strip()

    @classmethod
    def from_message(cls, header):
        """From an `error` message of the engine."""
        kind, message = str(header.get("kind", "")), str(header.get("message", ""))
        hint = str(header.get("hint", ""))
        if kind == "prompt":
            return cls(kind, tr("The click cannot be used: {reason}", reason=message), hint)
        if kind == "pixels":
            return cls(kind, tr("Imagery is missing: {reason}", reason=message), hint)
        if kind == "engine_died":
            return cls(kind, message, hint, str(header.get("detail", "")))
        return cls(kind, tr("The engine reports: {reason}", reason=message), hint)
