"""Tables of a run: what training did."""

from __future__ import annotations

from intaglio.tables.column import ADDRESS, Column, Table

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

RUN = (
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
        _STEP, ADDRESS,
        Column("update_l2", "float64", _LENGTH, "length of the part's own step"),
        Column("weight_l2", "float64", _LENGTH, "length of the part's weights before the step"),
        Column("data_shift", "float64", _LENGTH, "what this step's examples contributed here"),
        Column("carry_shift", "float64", _LENGTH, "what momentum carried over from earlier steps contributed here"),
        Column("decay_shift", "float64", _LENGTH, "what weight decay contributed here"),
    )),
    Table("visit_parts", ("step", "slot", "address"), "where in the model a visit acted", (
        _STEP, _SLOT, ADDRESS,
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
    Table("token_parts", ("step", "slot", "position", "address"), "what was written through each token in one part", (
        _STEP, _SLOT,
        Column("position", "int32", "", "place of the token in its example (from 0)"),
        ADDRESS,
        Column("shift", "float64", _LENGTH, "signed length written through this token into this part, of the parts asked for"),
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
    Table("visit_credits", ("step", "slot", "probe", "address"), "what a visit did to a probe through one part of the model", (
        _STEP, _SLOT, _PROBE, ADDRESS, _EXAMPLE,
        Column("credit_nats", "float64", "nats",
               "fall of the probe's mean loss that the example's part of the step predicts through this part's weights alone"),
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
