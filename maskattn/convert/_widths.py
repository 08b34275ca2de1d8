from maskattn.convert._identity import About
from maskattn.convert._model import Model


def mismatches(model: Model, about: About) -> list[str]:
    return []
