"""Import path of saved models and configurations; the formats are defined in ``vitfast.formats``."""

from vitfast.formats import FloatFormat as FloatFormat
