"""What "no condition" is: the same in training, where it is dropped, and in guidance."""

import pytest
import torch

from ldm.conditioning.boxes import BoxMap
from ldm.conditioning.conditioner import Conditioner, Part
from ldm.conditioning.labels import ClassEmbedder, ClassLabels
from ldm.conditioning.layout import LayoutEmbedder
from ldm.conditioning.retrieval import NeighbourEmbedder
from ldm.conditioning.spatial import SpatialRescaler
from ldm.conditioning.text import BERTEmbedder
from ldm.conditioning.vectors import VectorEmbedder
from ldm.conditioning.words import BagOfWords
from ldm.diffusion.draws import KeyedDraws

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "blue"]
RATE = {"drop_rate": 0.3}
LABELS, MAPS = torch.tensor([1, 2]), torch.tensor([[[0, 1], [2, 2]]] * 2)
CAPTIONS = ["a red circle", "blue"]
BOXES = [torch.tensor([[1, 0.0, 0.0, 0.5, 0.5]]), torch.tensor([[2, 0.5, 0.5, 0.5, 0.5]])]


def bert(vocabulary):
    return BERTEmbedder(8, 1, len(WORDS), 6, tokenizer=vocabulary, **RATE)


# each encoder, and an entry of a batch of two
MEMBERS = {
    "class token": (lambda _: ClassEmbedder(4, 5, **RATE), LABELS),
    "class vector": (lambda _: ClassEmbedder(4, 5, slot="vector", **RATE), LABELS),
    "class label": (lambda _: ClassLabels(5, **RATE), LABELS),
    "map of labels": (lambda _: SpatialRescaler(0, in_channels=3, out_channels=2, **RATE), MAPS),
    "image": (lambda _: SpatialRescaler(0, out_channels=2, **RATE), torch.rand(2, 4, 4, 3)),
    "layout": (lambda _: LayoutEmbedder(8, 1, 3, 16, 2, **RATE), BOXES),
    "painted boxes": (lambda _: BoxMap(4, 3, 2, **RATE), BOXES),
    "neighbours": (lambda _: NeighbourEmbedder(3, **RATE), torch.rand(2, 4, 3)),
    "vector": (lambda _: VectorEmbedder(3, 4, **RATE), torch.rand(2, 3)),
    "vector as it is": (lambda _: VectorEmbedder(3, **RATE), torch.rand(2, 3)),
    "captions": (bert, CAPTIONS),
    "tokens": (bert, torch.tensor([[2, 5, 3], [2, 6, 3]])),
    "bag of words": (lambda v: BagOfWords(4, len(WORDS), 6, v, **RATE), CAPTIONS),
}


class Zeros:
    """Draws that are below every rate."""

    def uniform(self, stream):
        return torch.zeros(2)


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return str(path)


@pytest.mark.parametrize("name", MEMBERS)
def test_guidance_is_told_what_training_was_told_of_a_dropped_entry(name, vocabulary):
    make, entry = MEMBERS[name]
    embedder = make(vocabulary).eval()
    conditioner = Conditioner((Part(embedder, "entry", embedder.slot),))
    told = {"entry": entry}
    (given,) = conditioner(told).slots().values()
    (dropped,) = conditioner(told, draws=Zeros()).slots().values()
    (null,) = conditioner.null(told).slots().values()
    assert torch.equal(dropped, null)
    assert null.shape == given.shape
    assert torch.equal(null[0], null[1])  # nothing is left of the entry
    assert not torch.equal(null, given)


def test_every_encoder_and_entry_is_dropped_at_its_own_rate():
    """Independent entries; of one entry, those of a higher rate contain those of a lower one."""
    count, rates = 20_000, {"a": 0.1, "b": 0.5}
    first, second = (ClassLabels(2, drop_rate=rate) for rate in rates.values())
    low = ClassEmbedder(1, 2, drop_rate=0.2, slot="vector")
    torch.nn.init.zeros_(low.embedding.weight[0])
    torch.nn.init.ones_(low.embedding.weight[1])
    draws, labels = KeyedDraws(range(count), seed=5), torch.zeros(count, dtype=torch.long)

    def dropped(embedder, key):
        cond = Conditioner((Part(embedder, key, "vector"),))({key: labels}, draws=draws)
        return cond.vector.detach().reshape(count).bool()

    a, b, also_a = dropped(first, "a"), dropped(second, "b"), dropped(low, "a")
    shares = {0.1: a, 0.5: b, 0.2: also_a, 0.1 * 0.5: a & b}
    for share, events in shares.items():
        error = (share * (1 - share) / count) ** 0.5
        assert abs(float(events.float().mean()) - share) < 3 * error
    assert not bool((a & ~also_a).any())


# labels and vectors


def test_a_class_vector_is_the_row_of_its_class():
    embedder = ClassEmbedder(4, 5, slot="vector")
    assert torch.equal(embedder.encode(LABELS), embedder.embedding.weight[[1, 2]])


def test_labels_for_a_table_of_the_network_stay_labels():
    embedder = ClassLabels(5, drop_rate=0.1)
    assert embedder.encode(LABELS) is LABELS
    assert embedder.drop(LABELS, torch.tensor([True, False])).tolist() == [4, 2]
    with pytest.raises(ValueError, match="and the null class that drop_rate needs"):
        ClassLabels(1, drop_rate=0.1)


def test_a_vector_is_mapped_by_a_matrix_or_not_at_all():
    mapped, plain, x = VectorEmbedder(3, 4), VectorEmbedder(3), torch.rand(2, 3)
    torch.testing.assert_close(mapped.encode(x), x @ mapped.projection.weight.T)
    assert (mapped.embed_dim, plain.embed_dim) == (4, 3)
    assert plain.encode(x) is x
    with pytest.raises(ValueError, match=r"shape \(2, 3, 1\); expected \(B, 3\), as in_dim says"):
        plain.encode(x[..., None])
