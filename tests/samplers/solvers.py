"""Every sampler there is, once: one that is added here comes under all tests of the family."""

from dataclasses import fields, is_dataclass, replace

from ldm.samplers.ancestral import Ancestral
from ldm.samplers.ddim import DDIM
from ldm.samplers.dpm import DPMSolver, DPMSolverSDE, DPMSolverSinglestep
from ldm.samplers.euler import Euler, EulerAncestral
from ldm.samplers.heun import Heun
from ldm.samplers.plms import PLMS
from ldm.samplers.unipc import UniPC

SOLVERS = [
    DDIM(),
    DDIM(eta=1.0),
    Ancestral(),
    Ancestral(v=1.0),
    PLMS(),
    Euler(),
    Euler(s_churn=10.0),
    EulerAncestral(),
    Heun(),
    Heun(s_churn=10.0),
    DPMSolverSinglestep(),
    DPMSolver(),
    DPMSolver(order=3),
    DPMSolverSDE(),
    DPMSolverSDE(slope="heun"),
    DPMSolverSDE(order=3),
    UniPC(order=1),
    UniPC(),
    UniPC(variant="B1"),
    UniPC(order=3),
    UniPC(order=2, corrector=False),
]

# those that go on from more than the state
WITH_MEMORY = (PLMS, DPMSolver, DPMSolverSDE, UniPC)


def noiseless(sampler):
    """The sampler with every parameter of noise at 0."""
    amounts = {"eta", "s_churn"} & {field.name for field in fields(sampler)}
    return replace(sampler, **dict.fromkeys(amounts, 0.0))


def quiet(sampler):
    """The sampler with its steps as they are, but the noise that they add at 0."""
    factors = {"temperature", "s_noise"} & {field.name for field in fields(sampler)}
    return replace(sampler, **dict.fromkeys(factors, 0.0))


def name(value):
    """A short id: the class and the fields that are not its defaults."""
    if not is_dataclass(value):
        return value if isinstance(value, str) else type(value).__name__
    default = type(value)()
    given = {field.name: getattr(value, field.name) for field in fields(value)}
    changed = [f"{key}={given[key]}" for key in given if given[key] != getattr(default, key)]
    return f"{type(value).__name__}({', '.join(changed)})"


STOCHASTIC = [sampler for sampler in SOLVERS if sampler.adds_noise]

# solvers of the probability-flow ODE: each in its noiseless form, once
ODE = list(dict.fromkeys(noiseless(s) for s in SOLVERS if not noiseless(s).adds_noise))
