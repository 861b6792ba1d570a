"""The public names of the library. ``import rosa`` itself imports nothing of them, and so no torch."""

from rosa.adapter_files import load_adapter as load_adapter
from rosa.adapter_files import save_adapter as save_adapter
from rosa.disabling import disabled as disabled
from rosa.errors import AdapterError as AdapterError
from rosa.exporting import export as export
from rosa.injection import (
    adapter_layers as adapter_layers,
)
from rosa.injection import (
    inject as inject,
)
from rosa.injection import (
    merge as merge,
)
from rosa.injection import (
    merged as merged,
)
from rosa.injection import (
    start_adapters as start_adapters,
)
from rosa.injection import (
    train_only as train_only,
)
from rosa.injection import (
    unmerge as unmerge,
)
from rosa.injection import (
    unwrap as unwrap,
)
from rosa.layers import AdapterLayer as AdapterLayer
from rosa.layers import LowRankLayer as LowRankLayer
from rosa.methods import register as register
from rosa.optimization import parameter_groups as parameter_groups
from rosa.report import ParameterReport as ParameterReport
from rosa.report import parameter_report as parameter_report
from rosa.resampler import Resampler as Resampler
from rosa.resampler import resample as resample
from rosa.settings import (
    AdapterConfig as AdapterConfig,
)
from rosa.settings import (
    BitFitConfig as BitFitConfig,
)
from rosa.settings import (
    DoraConfig as DoraConfig,
)
from rosa.settings import (
    IA3Config as IA3Config,
)
from rosa.settings import (
    LoraConfig as LoraConfig,
)
from rosa.settings import (
    LowRankConfig as LowRankConfig,
)
from rosa.settings import (
    ReloraConfig as ReloraConfig,
)
from rosa.settings import (
    RosaConfig as RosaConfig,
)
