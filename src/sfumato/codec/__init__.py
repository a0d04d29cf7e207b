"""Images as bits, through a denoiser's noise levels: without loss, or as few as one likes."""

from sfumato.codec.container import Container, Header
from sfumato.codec.lattice import Asker, Lattice
from sfumato.codec.lossless import Lossless
from sfumato.codec.lossy import Lossy
from sfumato.codec.profile import Profile, measure_profile

__all__ = [
    "Asker",
    "Container",
    "Header",
    "Lattice",
    "Lossless",
    "Lossy",
    "Profile",
    "measure_profile",
]
