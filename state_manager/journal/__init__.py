"""What makes an acknowledged write survive a crash: see ``log`` for the files, ``frames`` for the format."""

from .failures import JournalFailed, JournalFull, JournalLost, JournalNotSynced
from .files import DirectoryFiles, Files
from .frames import COMPLETE, LIVE, SLICE, Frame, Lane, NewerVersion
from .log import Journal, Mode, Pin
from .reading import Progress, Reading

__all__ = [
    "COMPLETE",
    "LIVE",
    "SLICE",
    "DirectoryFiles",
    "Files",
    "Frame",
    "Journal",
    "JournalFailed",
    "JournalFull",
    "JournalLost",
    "JournalNotSynced",
    "Lane",
    "Mode",
    "NewerVersion",
    "Pin",
    "Progress",
    "Reading",
]
