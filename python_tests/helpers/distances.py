"""The distances of batch-norm statistics, written out."""

import torch
from torch.distributions import Normal, kl_divergence


def gaussian_kl(mean, variance, running_mean, running_var, eps):
    """The divergence of the batch's normal distribution from the stored one."""
    batch = Normal(mean, (variance + eps).sqrt(), validate_args=False)  # NaN too
    stored = Normal(running_mean, (running_var + eps).sqrt())
    return kl_divergence(batch, stored).mean()


def mse(mean, variance, running_mean, running_var, eps):
    """Mean squared errors of both statistics."""
    errors = torch.nn.functional.mse_loss
    return errors(mean, running_mean) + errors(variance, running_var)


def std_mse(mean, variance, running_mean, running_var, eps):
    """Mean squared errors of mean and standard deviation."""
    return mse(mean, (variance + eps).sqrt(), running_mean, (running_var + eps).sqrt(), eps)


def l2(mean, variance, running_mean, running_var, eps):
    """Euclidean norms of both differences."""
    return torch.norm(mean - running_mean) + torch.norm(variance - running_var)


CLOSED_FORMS = {"gaussian_kl": gaussian_kl, "mse": mse, "std_mse": std_mse, "l2": l2}


def closed_form(statistics, eps, distance):
    """The mean over layers in float64."""
    rows = zip(*statistics, eps, strict=True)
    values = [
        CLOSED_FORMS[distance](*(values.double() for values in row), layer_eps)
        for *row, layer_eps in rows
    ]
    return torch.stack(values).mean()
