"""Results as DICOM objects, in a folder or back in the PACS."""
