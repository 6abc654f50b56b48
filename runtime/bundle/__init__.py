"""What a bundle is: its manifest, its weight file, its classes and its engine records, read strictly."""
