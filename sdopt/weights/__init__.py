"""Where the weights come from: the shipped model, a folder, a file or the hub."""
