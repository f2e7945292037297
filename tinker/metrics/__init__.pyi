from .prediction import SplitSums as SplitSums
from .prediction import accuracy as accuracy
from .prediction import bits_per_byte as bits_per_byte
from .prediction import mean_squared_error as mean_squared_error
from .prediction import nll as nll
from .prediction import perplexity as perplexity
from .prediction import r_squared as r_squared
