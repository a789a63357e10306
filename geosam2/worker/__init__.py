"""The process that the QGIS plugin talks to: messages on stdin and stdout, segmentation in between.

`python -I -m geosam2.worker` starts it. `protocol` says how messages are framed, `loop` what they
mean, `docs/qgis.md` lists them. Nothing of torch is imported before a model is loaded.
"""
