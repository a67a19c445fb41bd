"""The trainable stages, one file each."""
