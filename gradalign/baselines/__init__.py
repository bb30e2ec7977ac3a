"""What gradalign is compared with: other ways of filling `.grad`, under the contract and the promises of `GradAlign`."""

from gradalign.baselines.fomaml import FOMAML
from gradalign.baselines.maml import MAML
from gradalign.baselines.reptile import Reptile
from gradalign.baselines.sam import SAM

__all__ = ["FOMAML", "MAML", "SAM", "Reptile"]
