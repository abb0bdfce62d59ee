"""Public feature maps: frozen, data-independent functions from images to features, for heads trained with privacy."""
