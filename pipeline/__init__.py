"""Neural style transfer (Gatys, Ecker & Bethge, CVPR 2016) as a reproducible experiment."""

__version__ = "0.1.0"
