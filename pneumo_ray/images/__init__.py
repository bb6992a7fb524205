"""Bytes to uint8 grey images, and what is done to them: decode, DICOM, augment, corrupt."""
