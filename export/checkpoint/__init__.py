"""What an export starts from: a recipe and the weights of a checkpoint, found, downloaded or made up by a formula."""
