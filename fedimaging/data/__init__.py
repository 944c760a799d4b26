"""From a hospital's files to arrays: manifests, readers, the memory-mapped store, phantoms, hospitals, augmentation."""
