"""Metrics: a number for each text, made of the logits at one of its positions.

Each function here makes a metric. Any function of your own does as well, if gradients flow through it where they are
asked for.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from ..arguments import quoted, whole_number
from ..ops import upcast

Metric = Callable[[Tensor], Tensor]
"""[batch d_vocab] logits at one position -> [batch] numbers."""


def logit(token: int) -> Metric:
    """The metric that is one token's logit."""
    ids = _ids(token)
    return lambda logits: upcast(_known(logits, ids)[:, ids[0]])


def logit_difference(right: int, wrong: int) -> Metric:
    """The metric of Wang et al. 2022: the logit of one token less that of another."""
    ids = _ids(right, wrong)
    return lambda logits: upcast(_known(logits, ids)[:, ids[0]]) - upcast(logits[:, ids[1]])


def log_probability(token: int) -> Metric:
    """The metric that is one token's log-probability, in nats."""
    ids = _ids(token)
    return lambda logits: upcast(_known(logits, ids)).log_softmax(-1)[:, ids[0]]


def probability(token: int) -> Metric:
    """The metric that is one token's probability."""
    ids = _ids(token)
    return lambda logits: upcast(_known(logits, ids)).softmax(-1)[:, ids[0]]


def kl_from(reference: Float[Tensor, "d_vocab"]) -> Metric:
    """The metric that is KL(reference ‖ text) in nats, where reference has the logits of another run.

    Raises ValueError for logits of another shape than [d_vocab].
    """
    if not isinstance(reference, Tensor) or reference.ndim != 1:
        found = list(reference.shape) if isinstance(reference, Tensor) else quoted(reference)
        raise ValueError(f"reference must be the logits at one position, [d_vocab]; got {found}")
    logp = upcast(reference).log_softmax(-1)
    return lambda logits: (logp.exp() * (logp - upcast(logits).log_softmax(-1))).sum(-1)


METRICS: dict[str, Callable[..., Metric]] = {
    "logit_difference": logit_difference,
    "log_probability": log_probability,
    "probability": probability,
    "logit": logit,
}


def named_metric(name: str, right: int, wrong: int | None = None) -> Metric:
    """A metric by its name: "log_probability", "probability" or "logit" of one token, or "logit_difference" of two.

    Raises ValueError for another name, and for a token too few or too many.

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> metric = minilens.named_metric("probability", tokenizer.id(" time"))
    >>> float(metric(model(tokenizer.encode("Once upon a"))[:, -1])) > 0.9
    True
    """
    if name not in METRICS:
        raise ValueError(f"there is no metric {quoted(name)}; there are {', '.join(METRICS)}")
    takes_two = name == "logit_difference"
    if takes_two != (wrong is not None):
        missing = "a wrong one as well" if takes_two else "no wrong one: leave it out, or take logit_difference"
        raise ValueError(f"{name} takes the right token, and {missing}")
    return METRICS[name](right) if wrong is None else METRICS[name](right, wrong)


def measure(metric: Metric, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch"]:
    """Each text's number. A metric that mixes the texts of a batch would go unseen with one text: so never one."""
    batch = logits if len(logits) > 1 else logits.expand(2, -1)
    value = metric(batch)
    if not isinstance(value, Tensor) or value.shape != (len(batch),):
        found = list(value.shape) if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"the metric must give a tensor of one number for each text, [{len(batch)}]; it gave {found}")
    return value[: len(logits)]


def _ids(*tokens: int) -> list[int]:
    found = [whole_number("token", token) for token in tokens]
    if min(found) < 0:
        raise ValueError(f"token id {min(found)} does not exist: ids count from 0")
    return found


def _known(logits: Tensor, ids: list[int]) -> Tensor:
    if (n := logits.shape[-1]) <= max(ids):
        raise ValueError(f"token id {max(ids)} does not exist: the model's ids go from 0 to {n - 1}")
    return logits
