"""Labels of scans (NIfTI label maps, DICOM SEG, RTSTRUCT) on the grid of a volume."""
