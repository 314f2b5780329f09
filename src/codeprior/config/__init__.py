"""Settings of every verb: one frozen dataclass each, whose fields are the command line's flags and a recipe's keys.

Imports nothing heavy, so that `codeprior --help` answers at once. A field's text is its `--help`. Fields marked
`NOT_IDENTITY` say how or where a run is done, not what it computes: they may change between a run and its resumption.
"""

from codeprior.config.base import NOT_IDENTITY, ImagesConfig, MakeConfig, VerbConfig, Views
from codeprior.config.foreign import ConvertConfig, PushConfig
from codeprior.config.judgement import (
    EvaluateConfig,
    LikelihoodConfig,
    ReconstructConfig,
    ReferenceConfig,
    TrainClassifierConfig,
)
from codeprior.config.prior import ExtractConfig, InspectConfig
from codeprior.config.sampling import GuidanceSchedule, SampleConfig, SweepConfig
from codeprior.config.tokenizer import (
    EncodeConfig,
    ExportCodesConfig,
    ImportCodesConfig,
    TrainTokenizerConfig,
    VerifyCodesConfig,
)
from codeprior.config.training import TrainConfig
from codeprior.config.whole import DemoConfig, DoctorConfig, ReportConfig

__all__ = [
    "NOT_IDENTITY",
    "ConvertConfig",
    "DemoConfig",
    "DoctorConfig",
    "EncodeConfig",
    "EvaluateConfig",
    "ExportCodesConfig",
    "ExtractConfig",
    "GuidanceSchedule",
    "ImagesConfig",
    "ImportCodesConfig",
    "InspectConfig",
    "LikelihoodConfig",
    "MakeConfig",
    "PushConfig",
    "ReconstructConfig",
    "ReferenceConfig",
    "ReportConfig",
    "SampleConfig",
    "SweepConfig",
    "TrainClassifierConfig",
    "TrainConfig",
    "TrainTokenizerConfig",
    "VerbConfig",
    "VerifyCodesConfig",
    "Views",
]
