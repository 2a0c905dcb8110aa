"""The payload language and that of Modbus registers have one rule for bit fields with a sign."""

import pytest
from pydantic import ValidationError

from drivers.lora.layout import Step


@pytest.mark.parametrize("kind", ["i8", "i16", "i24", "i32", "i64"])
def test_a_bit_field_of_a_signed_type_says_that_it_is_signed(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"bits: of {kind} .* signed: true"):
        Step.model_validate({"type": kind, "point": "t", "bits": [0, 7]})
    with pytest.raises(ValidationError, match="signed: true"):
        Step.model_validate({"type": kind, "parts": [{"point": "t", "bits": [4, 2]}]})

    Step.model_validate({"type": kind, "point": "t", "bits": [0, 7], "signed": True})
    Step.model_validate({"type": kind, "point": "flag", "bits": [7, 1], "flag": True})
    Step.model_validate({"type": kind.replace("i", "u") if kind != "i24" else "u24", "point": "t", "bits": [0, 7]})
