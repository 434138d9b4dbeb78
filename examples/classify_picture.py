"""Prints the class of a picture: `python classify_picture.py model.onnx picture.jpg`."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])  # written with --input uint8 --resize-input
channels = session.get_inputs()[0].shape[-1]
pixels = np.array(Image.open(sys.argv[2]).convert("L" if channels == 1 else "RGB"))
(logits,) = session.run(None, {"images": pixels.reshape(1, *pixels.shape[:2], channels)})
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
print(names[logits[0].argmax()])
