"""Where classifiers come from: bundled, torchvision, timm, a function, a model, a program."""
