"""Reading CT of every kind (DICOM, NIfTI, zips of either) and its labels; the standard grid; the volume store."""
