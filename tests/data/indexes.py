"""Small indexes of neighbours."""

import numpy as np

from ldm.data.mapped import write_arrays
from ldm.data.retrieval import key_of, name_key


def save_index(path, keys, neighbours, *, width=8, database=10, split="train", clip="0" * 64):
    """An index of random embeddings of length 1, and its embeddings (database, width)."""
    vectors = np.random.default_rng(0).standard_normal((database, width))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    names = "".join(f"{row}.png\n" for row in range(database)).encode()
    arrays = {
        "embeddings": vectors,
        "names": np.frombuffer(names, np.uint8),
        f"keys.{split}": np.array(keys, np.int64),
        f"neighbours.{split}": np.array(neighbours, np.int32),
    }
    write_arrays(path, arrays, {"clip": clip, "database": "images"})
    return vectors


def keys_of(data):
    """The keys of all items of a data set."""
    return [key_of(data[index]) for index in range(len(data))]


def keys_of_names(names):
    """The keys of items by their names."""
    return [name_key(name) for name in names]
