"""KRT workbench: multi-label class-incremental learning (MLCIL) with Knowledge Restore and Transfer.

Letters used in every shape comment of this package:

====  ==========================================================
n     images of a data set
B     images of a batch
C     classes seen so far (columns run in learning order)
T     sessions so far
N     patches of the feature map (7 x 7 = 49 at 224 px)
D     embedding width of the tokens
H     attention heads
hd    width of one head, D / H
====  ==========================================================

Paper: Dong et al., *Knowledge Restore and Transfer for Multi-label Class-Incremental Learning*, ICCV 2023.
"""

__version__ = "0.1.0"
