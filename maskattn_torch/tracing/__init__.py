"""PyTorch programs recorded, and played again with edits."""

from maskattn_torch.tracing.edits import edits
from maskattn_torch.tracing.record import Recording, record
from maskattn_torch.tracing.replay import Edit, Program, refs

__all__ = ["Edit", "Program", "Recording", "edits", "record", "refs"]
