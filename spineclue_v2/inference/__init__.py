"""From a predicted spine to files a reader can use: label map on the scan's own grid, centres, record, picture."""
