"""Radiographs from archive to pixels: manifest, splits, decoding, cache, augmentation, sampling."""
