"""Everything that turns an image into a vector, behind one interface."""
