"""Classifiers that `torch.export.save` wrote, whose files are checked before torch reads them."""
