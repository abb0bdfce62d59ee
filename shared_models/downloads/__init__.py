"""Public data and pretrained weights that package registries ship: what there is, and how it is fetched."""
