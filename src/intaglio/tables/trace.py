"""Tables of a trace: one decision taken apart."""

from __future__ import annotations

from intaglio.tables.column import ADDRESS, Column, Table

_FALL = "fall of the logit difference when the part is replaced"

TRACE = (
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
        ADDRESS,
        Column("source", "int32", "", "position of the token that a head read from; null for parts that read none"),
        Column("token", "string", "", "that token as letters"),
        Column("vote_logits", "float64", "logits", "what was put on the scales, for the target if positive"),
        Column("part_logits", "float64", "logits", "vote of the whole part: a head's over all its sources"),
        Column("effect_logits", "float64", "logits", f"{_FALL} (the whole part; null where it was not run)"),
        Column("effect_metric", "float64", "", "the same fall of a metric of one's own; null where none was given"),
        Column("attention", "float64", "", "share of the head's attention that the source got"),
    )),
    Table("effects", ("address", "ablation"), "what replacing a part did, booked", (
        ADDRESS,
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
        ADDRESS,
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
