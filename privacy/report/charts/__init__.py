"""Charts as inline SVG, drawn here: no script and no font from elsewhere is needed to read them."""
