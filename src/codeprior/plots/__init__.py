"""Pictures of clusterings, images and scores, as PNG, SVG or PDF: arrays in, a figure out.

Matplotlib is imported by the first picture.
"""

from codeprior.plots.curves import curves_over_k, loss_curves, score_curves
from codeprior.plots.grids import image_grid
from codeprior.plots.sizes import cluster_sizes
from codeprior.plots.style import PALETTE
from codeprior.plots.tree import dendrogram

__all__ = ["PALETTE", "cluster_sizes", "curves_over_k", "dendrogram", "image_grid", "loss_curves", "score_curves"]
