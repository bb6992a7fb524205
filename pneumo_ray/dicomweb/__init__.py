"""Archives over DICOMweb (DICOM PS3.18): an HTTP client, searches, and the bytes of images."""
