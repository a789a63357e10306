"""How the embedded model was trained, and how a person adapts a model to their own polygons.

`python -m geosam2_model.training RECIPE.toml` runs a recipe; those in `recipes/` made the weights
that ship, one after the other, and `average` the mean of the last two. Needs
the `train` extra (scikit-image, scipy, tifffile, matplotlib).
"""
