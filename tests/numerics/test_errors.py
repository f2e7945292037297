"""The nearest accepted name."""

import pytest

from tinker import numerics


def test_nearest_names_one_close_option_or_none():
    options = ["learning_rate", "momentum", 3]
    assert numerics.nearest("lerning_rate", options) == " (did you mean 'learning_rate'?)"
    assert numerics.nearest("moment", options) == " (did you mean 'momentum'?)"
    assert numerics.nearest("momentum", ["momentun", "momentums"]).count("momentu") == 1
    assert numerics.nearest(3, options) == " (did you mean '3'?)"
    assert numerics.nearest("epsilon", options) == ""
    assert numerics.nearest("rate", options) == ""  # less than half of it is alike
    assert numerics.nearest("x", []) == ""


def test_user_errors_are_value_errors():
    with pytest.raises(ValueError, match="told"):
        raise numerics.UserError("told")


def test_a_choice_is_one_of_the_options_or_named_with_the_nearest():
    numerics.check_choice("pool", "gap", ("gap", "cls"))
    numerics.check_choice("remat", None, (None, "full"))
    with pytest.raises(numerics.UserError) as error:
        numerics.check_choice("pool", "gab", ("gap", "cls"))
    assert str(error.value) == "pool='gab': it takes gap, cls (did you mean 'gap'?)"
