from .errors import UserError as UserError
from .errors import nearest as nearest
from .keys import fold_in as fold_in
