"""Widgets, the map tool and what connects them."""
