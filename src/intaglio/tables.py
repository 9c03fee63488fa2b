"""THE contract: every table of a run, its key, its columns, their units and what they mean.

Stages that pass data never import each other; they all import this file. A column's
`means` is printed by the pages and the reference docs, so it is written for a reader.
Pure: no torch, no pyarrow.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `type` is a pyarrow type name, `unit` is "" where the number has none."""

    name: str
    type: str
    unit: str
    means: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table: one row per `key`."""

    name: str
    key: tuple[str, ...]
    means: str
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column:
        return next(c for c in self.columns if c.name == name)


_LENGTH = "parameter length"
_STEP = Column("step", "int32", "steps", "optimizer steps taken before this one, counted from 0")
_SLOT = Column("slot", "int32", "", "place of the example in the step's batch, over all micro-batches and ranks")
_RANK = Column("rank", "int32", "", "process that measured the row; 0 unless training is distributed")
_EXAMPLE = Column("example", "string", "", "id of the example: a hash of its unpadded token ids and label mask")
_PUSH_KIND = Column(
    "push_kind", "string", "",
    "token_sum: push is of the summed token loss; as_weighted: the loss is no sum over the example's "
    "own tokens and push is of the loss as it was used")  # fmt: skip
_PROBE = Column("probe", "string", "", "name of the probe, a fixed set of texts that is watched")
_ADDRESS = Column("address", "string", "", "part of the model, such as L3.attn.H5")

_TABLES = (
    Table("examples", ("example",), "one row per distinct training text", (
        _EXAMPLE,
        Column("row", "list<int64>", "", "row numbers in the data set that hold exactly this text (from 0)"),
        Column("group", "string", "", "the row's group, if the data set has a `group` column"),
        Column("fact", "string", "", "what the row teaches, if the data has a `fact` column; joins it to probe items"),
        Column("tokens", "int32", "tokens", "length without padding"),
        Column("targets", "int32", "tokens", "how many tokens are trained on"),
        Column("preview", "string", "", "the first characters of the text"),
        Column("token_ids", "list<int32>", "", "the unpadded token ids"),
        Column("target_mask", "list<bool>", "", "true where the token itself is trained on (is a label)"),
    )),
    Table("visits", ("step", "slot"), "one row per example in one optimizer step", (
        _STEP, _SLOT, _RANK, _EXAMPLE,
        Column("targets", "int32", "tokens", "how many tokens were trained on in this visit"),
        Column("loss_nats", "float64", "nats/token", "surprise: mean loss per trained token, before the step"),
        Column("push", "float64", "nats per unit of parameter",
               "length of the gradient of the example's own summed token loss, over all measured parameters"),
        _PUSH_KIND,
        Column("shift", "float64", _LENGTH,
               "signed length that the example contributed to the step taken; negative: against the step"),
        Column("alignment", "float64", "",
               "cosine between the example's gradient and the sum of the others' (leave-one-out; -1 to 1)"),
        Column("churn", "float64", _LENGTH,
               "length of the example's part of the step that is perpendicular to the step (level exact)"),
        Column("loss_weight", "float64", "", "the weight that the loss's reduction gave each of its tokens"),
    )),
    Table("sketches", ("step", "slot"), "a small random projection of each visit's gradient", (
        _STEP, _SLOT, _RANK, _EXAMPLE,
        Column("sketch", "list<float32>", "", "factored random projection of the example's part of the gradient"),
        Column("seed", "int64", "", "seed of the projection"),
        Column("error", "float64", "", "measured error: relative difference of the sketch's length from the true one"),
    )),
    Table("parts", ("step", "address"), "what a step did to each part of the model", (
        _STEP, _ADDRESS,
        Column("update_l2", "float64", _LENGTH, "length of the part's own step"),
        Column("weight_l2", "float64", _LENGTH, "length of the part's weights before the step"),
        Column("data_shift", "float64", _LENGTH, "what this step's examples contributed here"),
        Column("carry_shift", "float64", _LENGTH, "what momentum carried over from earlier steps contributed here"),
        Column("decay_shift", "float64", _LENGTH, "what weight decay contributed here"),
    )),
    Table("visit_parts", ("step", "slot", "address"), "where in the model a visit acted", (
        _STEP, _SLOT, _ADDRESS,
        Column("push", "float64", "nats per unit of parameter", "length of the example's gradient in this part"),
        Column("shift", "float64", _LENGTH, "signed length that the example contributed to the step in this part"),
    )),
    Table("tokens", ("step", "slot", "position"), "what was written through each token", (
        _STEP, _SLOT,
        Column("position", "int32", "", "place of the token in its example (from 0)"),
        Column("token", "int32", "", "id of the token at this position"),
        Column("target", "int32", "", "id of the next token if it is trained on, else null"),
        Column("surprise_nats", "float64", "nats", "-log p of the target, before the step; null without a target"),
        Column("entropy_nats", "float64", "nats", "entropy of the model's prediction here; null without a target"),
        Column("shift", "float64", _LENGTH,
               "signed length written through this token by all the losses that came after it"),
        Column("write", "float64", "", "length of the token's rank-one writes over all matrices, root of summed squares"),
    )),
    Table("steps", ("step",), "one row per optimizer step: the books", (
        _STEP,
        Column("examples", "int32", "", "examples in the step, over all micro-batches"),
        Column("targets", "int32", "tokens", "tokens trained on in the step"),
        Column("lr", "float64", "", "learning rate of the first parameter group"),
        Column("loss_nats", "float64", "nats/token", "mean loss per trained token before the step"),
        Column("grad_l2", "float64", "", "length of the gradient of the actual loss, before clipping; under LoRA of the "
               "gradient at the frozen matrices, below level exact estimated (off by 1 or 2 % in a step, not on average); "
               "null where it was changed coordinate by coordinate"),
        Column("clip_scale", "float64", "", "factor the gradient was multiplied by between backward and step"),
        Column("update_l2", "float64", _LENGTH, "length of the step actually taken"),
        Column("data_shift", "float64", _LENGTH, "sum of the signed lengths of all examples"),
        Column("carry_shift", "float64", _LENGTH, "contribution of momentum carried over from earlier steps"),
        Column("decay_shift", "float64", _LENGTH, "contribution of weight decay"),
        Column("unmeasured_shift", "float64", _LENGTH, "contribution of parameters that are not measured, and of "
               "gradients that were changed coordinate by coordinate before the step"),
        Column("unexplained_shift", "float64", _LENGTH,
               "the rest of the step under an optimizer without formulas here (0 for SGD, Adam, AdamW)"),
        Column("interaction_shift", "float64", _LENGTH, "LoRA only: the product of both adapters' changes"),
        Column("rounding_shift", "float64", _LENGTH,
               "the update asked for against the one stored: what the weights' precision swallowed"),
        Column("closure", "float64", "", "abs(sum of all accounts / update_l2 - 1): 0 when the books close"),
        Column("gradient_match", "float64", "",
               "relative difference between the examples' gradients summed and the gradient autograd made"),
        Column("unsettled", "bool", "", "true in the first ten steps, while Adam's denominators are young"),
        Column("agreement_gg", "float64", "", "unbiased estimate of the squared length of the true gradient; under LoRA "
               "below level exact from a random projection drawn anew at every step, whose error averages out over steps"),
        Column("agreement_s", "float64", "", "unbiased estimate of the gradient's variance per example"),
        Column("path_l2", "float64", _LENGTH, "sum of update_l2 so far, this step included"),
        Column("net_l2", "float64", _LENGTH, "distance of the weights after this step from the initial weights; "
               "null where it was not measured"),
        Column("measured", "string", "", "what was measured in this step: full, exact, norms or none"),
        Column("seconds", "float64", "s", "wall time since the previous step ended"),
        Column("measure_seconds", "float64", "s", "of which spent measuring"),
    )),
    Table("credits", ("step", "slot", "probe"), "what a visit did to a probe, to first order", (
        _STEP, _SLOT, _PROBE, _EXAMPLE,
        Column("credit_nats", "float64", "nats",
               "fall of the probe's mean loss that the example's part of the step predicts; negative: it makes worse"),
    )),
    Table("probes", ("step", "probe"), "the books of each probe's loss", (
        _STEP, _PROBE,
        Column("loss_nats", "float64", "nats/token", "the probe's mean loss before this step"),
        Column("kl_nats", "float64", "nats/token", "KL from the initial model's predictions to the present ones"),
        Column("measured_change_nats", "float64", "nats/token", "fall of the probe's loss over this one step, measured"),
        Column("credit_sum_nats", "float64", "nats/token", "sum of the credits of the step's examples"),
        Column("carry_nats", "float64", "nats/token", "fall predicted from momentum carried over"),
        Column("decay_nats", "float64", "nats/token", "fall predicted from weight decay"),
        Column("unmeasured_nats", "float64", "nats/token", "fall predicted from parameters that are not measured"),
        Column("residual_nats", "float64", "nats/token",
               "measured change less all predictions: what is not first order"),
        Column("seconds", "float64", "s", "time spent on this probe at this step"),
    )),
    Table("probe_items", ("step", "probe", "item"), "each text of a probe", (
        _STEP, _PROBE,
        Column("item", "int32", "", "place of the text in the probe (from 0)"),
        Column("fact", "string", "", "joins the text to training rows of the same `fact`"),
        Column("group", "string", "", "the text's group, if the probe has one"),
        Column("loss_nats", "float64", "nats/token", "mean loss per target token before this step"),
        Column("preview", "string", "", "the first characters of the text"),
    )),
    Table("drift", ("step", "probe", "layer"), "how far a layer's output moved on a probe", (
        _STEP, _PROBE,
        Column("layer", "int32", "", "0 is the embedding's output, then after each layer"),
        Column("relative_l2", "float64", "", "median over tokens of |h_now - h_start| / |h_start| (first token left out)"),
        Column("cosine", "float64", "", "median over tokens of the cosine between centred h_now and h_start"),
        Column("cka", "float64", "", "debiased linear CKA between h_now and h_start: 1 is the same up to rotation"),
    )),
    Table("pairs", ("step", "slot_a", "slot_b"), "exact inner products of visits in one step and process (level exact)", (
        _STEP,
        Column("slot_a", "int32", "", "slot of the first visit"),
        Column("slot_b", "int32", "", "slot of the second visit"),
        Column("dot", "float64", "", "inner product of the two examples' gradients of their own summed loss"),
        Column("cosine", "float64", "", "the same divided by both lengths"),
    )),
    Table("group_carry", ("step", "group"), "momentum carried over, split by the group it came from", (
        _STEP,
        Column("group", "string", "", "group of the examples"),
        Column("carry_shift", "float64", _LENGTH, "contribution of this group's earlier gradients"),
    )),
    Table("scans", ("step", "example"), "every example scored at one state of the model, without training", (
        Column("step", "int32", "steps", "optimizer steps taken by the scored state; 0 is the start"),
        _EXAMPLE,
        Column("loss_nats", "float64", "nats/token", "surprise: mean loss per target token"),
        Column("push", "float64", "nats per unit of parameter", "length of the gradient of the summed token loss"),
        _PUSH_KIND,
        Column("alignment", "float64", "",
               "cosine between its gradient and the sum of all others' (while a scan is going: of those scored so far)"),
    )),
    Table("scan_credits", ("step", "example", "probe"), "what one plain gradient step on an example would do to a probe", (
        Column("step", "int32", "steps", "optimizer steps taken by the scored state; 0 is the start"),
        _EXAMPLE, _PROBE,
        Column("credit_nats", "float64", "nats per unit of parameter",
               "predicted fall of the probe's mean loss per unit of parameter length moved along the example's "
               "own gradient; negative: learning it costs the probe"),
        Column("cosine", "float64", "", "cosine between the example's descent direction and the probe's (-1 to 1)"),
    )),
    Table("vocab", ("token",), "how the tokens that occur are written", (
        Column("token", "int32", "", "token id"),
        Column("bytes", "binary", "", "the bytes the token stands for (a token may be part of one letter)"),
        Column("text", "string", "", "the token as letters, with a replacement sign where it is part of a letter"),
        Column("special", "bool", "", "true for control tokens such as <|im_end|>"),
    )),
    Table("checkpoints", ("step",), "states of the model that were kept", (
        Column("step", "int32", "steps", "optimizer steps taken by this state"),
        Column("path", "string", "", "folder of the state, relative to the run"),
        Column("net_l2", "float64", _LENGTH, "distance from the initial weights"),
    )),
    Table("spikes", ("step",), "steps that stand out, replayed to find the cause", (
        _STEP,
        Column("grad_z", "float64", "", "robust z of log grad_l2 against all steps"),
        Column("update_z", "float64", "", "robust z of log update_l2 against all steps"),
        Column("replay_step", "int32", "steps", "the earlier state the same batch was replayed from, in steps taken: "
               "the newest that was kept, else 0, the subject itself; null if it was not replayed"),
        Column("replay_z", "float64", "",
               "robust z of the log length of the batch's gradient there, against ordinary batches at that same state"),
        Column("verdict", "string", "", "data: the batch stands out at the earlier state too, by at least half as much; "
               "state: it does not; both: it does, but less; unknown: not replayed"),
    )),
)

TABLES: dict[str, Table] = {table.name: table for table in _TABLES}

_PART = Column("address", "string", "", "part of the model, such as L3.attn.H5")
_FALL = "fall of the logit difference when the part is replaced"

_TRACE = (
    Table("prompt", ("position",), "the tokens before the decision", (
        Column("position", "int32", "", "place in the prompt (from 0)"),
        Column("token", "int32", "", "token id"),
        Column("text", "string", "", "the token as letters; a part of a letter as its bytes"),
        Column("letters", "string", "", "the token as it is read: empty where it goes on with a letter begun before"),
    )),
    Table("candidates", ("rank",), "the likeliest next tokens", (
        Column("rank", "int32", "", "place by probability (from 0)"),
        Column("token", "int32", "", "token id"),
        Column("text", "string", "", "the token as letters; a part of a letter as its bytes"),
        Column("logit", "float64", "logits", "the model's score before softmax"),
        Column("probability", "float64", "", "share of the distribution at temperature 1"),
        Column("surprise_nats", "float64", "nats", "-log of the probability"),
    )),
    Table("votes", ("address", "source"), "every vote between the two tokens; they sum to the logit difference", (
        _PART,
        Column("source", "int32", "", "position of the token that a head read from; null for parts that read none"),
        Column("token", "string", "", "that token as letters"),
        Column("vote_logits", "float64", "logits", "what was put on the scales, for the target if positive"),
        Column("part_logits", "float64", "logits", "vote of the whole part: a head's over all its sources"),
        Column("effect_logits", "float64", "logits", f"{_FALL} (the whole part; null where it was not run)"),
        Column("effect_metric", "float64", "", "the same fall of a metric of one's own; null where none was given"),
        Column("attention", "float64", "", "share of the head's attention that the source got"),
    )),
    Table("effects", ("address", "ablation"), "what replacing a part did, booked", (
        _PART,
        Column("ablation", "string", "", "mean: by its mean over a reference text; resample: by its value on the other prompt"),
        Column("effect_logits", "float64", "logits", _FALL),
        Column("own_logits", "float64", "logits", "of which the change of the part's own vote"),
        Column("others_logits", "float64", "logits", "of which changes of all other votes, downstream"),
        Column("norm_logits", "float64", "logits", "of which the final norm's new scale"),
        Column("shape_logits", "float64", "logits", "of which scaling and capping of logits"),
        Column("estimate_logits", "float64", "logits", "first-order estimate from one backward (attribution patching); of the "
               "metric of one's own, where one was given"),
        Column("closure_logits", "float64", "logits", "abs(effect - sum of its terms): 0 when the books close"),
        Column("metric", "float64", "", "fall of a metric of one's own, where one was given"),
    )),
    Table("effect_terms", ("address", "ablation", "part"), "which other votes changed when a part was replaced", (
        _PART,
        Column("ablation", "string", "", "mean or resample"),
        Column("part", "string", "", "the part whose vote changed"),
        Column("change_logits", "float64", "logits",
               "fall of its vote at the norm's old scale; negative: it made up for the loss"),
    )),
    Table("neurons", ("layer", "neuron"), "the strongest neurons' votes", (
        Column("layer", "int32", "", "layer (from 0)"),
        Column("neuron", "int32", "", "neuron of its MLP (from 0)"),
        Column("activation", "float64", "", "how strongly it fired"),
        Column("vote_logits", "float64", "logits", "its part of the MLP's vote"),
    )),
    Table("upstream", ("head", "side", "part"), "why the loudest heads looked where they looked: their scores by who wrote", (
        Column("head", "string", "", "the head, such as L3.attn.H5"),
        Column("query", "int32", "", "position that looked: the last"),
        Column("key", "int32", "", "position it read most of its vote from"),
        Column("score", "float64", "", "query times key, scaled, before the softmax"),
        Column("attention", "float64", "", "share of the head's attention that the key got"),
        Column("side", "string", "", "query or key: which side the part wrote into"),
        Column("part", "string", "", "the part that wrote there, or bias: what no part gave"),
        Column("share", "float64", "", "what it gave to the score, in the score's own unit"),
        Column("source", "int32", "", "position that part read it from; null if it is no head"),
    )),
)

TRACE_TABLES: dict[str, Table] = {table.name: table for table in _TRACE}
