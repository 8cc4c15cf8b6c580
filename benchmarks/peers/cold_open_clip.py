"""The peer of lines K and L: python cold_open_clip.py MODEL_DIR PICTURE TEXT OUT"""

import os
import sys

import numpy as np
import open_clip
import torch
from PIL import Image

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
folder, picture, text, out = sys.argv[1:]
name = f"local-dir:{folder}"
model, transform = open_clip.create_model_from_pretrained(name)
ids = open_clip.get_tokenizer(name)([text])
with torch.inference_mode():
    image = model.eval().encode_image(transform(Image.open(picture))[None], normalize=True)
    np.savez(out, image=image.numpy(), text=model.encode_text(ids, normalize=True).numpy())
