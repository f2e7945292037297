from .classification import cross_entropy as cross_entropy
from .classification import focal as focal
from .classification import poly1_cross_entropy as poly1_cross_entropy
from .classification import poly1_focal as poly1_focal
from .classification import squared_error as squared_error
from .pairs import info_nce as info_nce
