"""What is wrong with what this machine was given: files, data, models, training, budgets."""

from __future__ import annotations

from ffm_common.errors.root import FfmError


class ConfigError(FfmError):
    """A configuration file cannot be used."""

    exit_status = 2


class ConfigMissing(ConfigError):
    """The file is not there or cannot be read."""

    code = "config-missing"
    remedy = "check the path given with --config"


class ConfigSyntax(ConfigError):
    """The file is not TOML."""

    code = "config-syntax"
    remedy = "mend the line named; the format is TOML"


class ConfigInvalid(ConfigError):
    """A key is unknown, missing, of the wrong type or out of range."""

    code = "config-invalid"
    remedy = "mend the key named"


class NameInvalid(ConfigError):
    """The name of a federation or an agent cannot stand in a topic."""

    code = "name-invalid"
    remedy = "use 1 to 64 of the characters a-z, 0-9 and -"


class DataError(FfmError):
    """A dataset cannot be used."""

    exit_status = 2


class DataMissing(DataError):
    """The file is not there or cannot be read."""

    code = "data-missing"
    remedy = "check the path of the data file"


class DataEmpty(DataError):
    """The file holds no example."""

    code = "data-empty"
    remedy = "give a file with at least one row of text and label"


class DataColumns(DataError):
    """The text or label column is not there or cannot be guessed."""

    code = "data-columns"
    remedy = "name the columns with --text and --label"


class DataFormat(DataError):
    """The file is not what its name says, or is broken."""

    code = "data-format"
    remedy = "give CSV, TSV, JSONL or Parquet; the ending of the name tells which"


class DataLabels(DataError):
    """Too few labels, or a label that the task does not know."""

    code = "data-labels"
    remedy = "a classification task needs at least two labels, known to hub and agents alike"


class DataScarce(DataError):
    """Too few distinct examples for what was asked."""

    code = "data-scarce"
    remedy = "give more data, or ask for fewer agents"


class ModelError(FfmError):
    """A base model or adapter cannot be used."""


class ModelMissing(ModelError):
    """No base model at the path or under the name."""

    code = "model-missing"
    remedy = "give a folder made by `ffm model prepare`"


class ModelDigest(ModelError):
    """The base on this machine is not bit-identical to the federation's."""

    code = "model-digest"
    remedy = "copy the federation's base folder again; every agent must hold the same bytes"


class ModelUnsupported(ModelError):
    """The base model is of a kind, or kept in a way, that this engine cannot train."""

    code = "model-unsupported"
    remedy = "use the torch engine for this base"


class AdapterInvalid(ModelError):
    """The adapter folder or file does not match the base or the format."""

    code = "adapter-invalid"
    remedy = "give an adapter folder in PEFT format made for this base"


class TrainingError(FfmError):
    """A piece of training did not finish."""


class LossNotFinite(TrainingError):
    """The loss became NaN or infinite; the last good state is kept."""

    code = "loss-not-finite"
    remedy = "lower learning_rate, or look at the examples of this shard"


class WorkerPaused(TrainingError):
    """The worker kept its state and ended because it was asked to."""

    code = "worker-paused"
    remedy = "nothing to do: it is started again when the profile allows"


class WorkerStuck(TrainingError):
    """The worker process showed no sign of life and was ended."""

    code = "worker-stuck"
    remedy = "nothing to do: it is started again; if it comes back, see the worker's log named"


class WorkerFailed(TrainingError):
    """The worker process ended without a result."""

    code = "worker-failed"
    remedy = "see the worker's log named in the message"


class ProfileError(FfmError):
    """A device profile cannot be used."""

    exit_status = 2


class ProfileUnknown(ProfileError):
    """No profile of that name is shipped and no file of that path exists."""

    code = "profile-unknown"
    remedy = "`ffm profile list` shows the names; a path to a TOML file works too"


class PlanImpossible(ProfileError):
    """No plan fits the profile."""

    code = "plan-impossible"
    remedy = "use a smaller adapter, shorter texts, a smaller base or a larger board"
    exit_status = 1


class ResourceError(FfmError):
    """A process met a limit of its device profile."""


class MemoryLimitHit(ResourceError):
    """The worker wanted more memory than its profile gives; it was stopped, the agent lives."""

    code = "memory-limit"
    remedy = "use a smaller batch, sequence length, rank or model, or raise memory_mb"
