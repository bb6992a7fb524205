"""A hospital's archive (PACS) over DICOMweb (DICOM PS3.18)."""
