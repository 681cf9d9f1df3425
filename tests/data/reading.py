"""Data sets read as training and evaluation read them."""

from ldm.data.substitutes import FAULTS, BadSample, Keyed


def faults(data):
    """What is wrong with which samples of a data set: reasons by index."""
    found = {}
    for index in range(len(data)):
        try:
            data[index]
        except BadSample as error:
            found[index] = error.fault[1]
    return found


def read_whole(data, epoch=0, seed=23):
    """Every sample of an epoch of training, in order, and the faults that were met."""
    keyed = Keyed(data, seed, replaces=True)
    items = [keyed[epoch * len(data) + index] for index in range(len(data))]
    return items, [fault for item in items for fault in item.get(FAULTS, ())]
