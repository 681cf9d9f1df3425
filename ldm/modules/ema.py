"""Published path of the moving average."""

from ldm.models.ema import EMA as LitEma
