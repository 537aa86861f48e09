"""The grids and the settings with which the change detector is measured."""

from vlm_reuse_node.config import Config

CELL_PX = 28
# Picture size (width, height) and name of the model: rows and columns of cells.
GRIDS = {
    (640, 480): {'embedded': (9, 12), 'full size': (17, 23)},
    (1920, 1080): {'embedded': (8, 14), 'full size': (39, 69)},
}
CONFIG = Config()
