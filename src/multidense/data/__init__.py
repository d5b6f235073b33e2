"""Where samples come from: readers, label settings, augmentation, batches."""

from multidense.data import partial
from multidense.data.collate import collate
from multidense.data.folder import Folder
from multidense.data.joined import Joined
from multidense.data.reader import Reader, Wrapped
from multidense.data.rooms import Rooms
from multidense.data.transforms import Augment, Augmented

__all__ = ["Augment", "Augmented", "Folder", "Joined", "Reader", "Rooms", "Wrapped", "collate", "partial"]
