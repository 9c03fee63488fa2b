"""Tables of an atlas: what every attention head does, on what evidence, since when, taught by what, stored where."""

from __future__ import annotations

from intaglio.tables.column import ADDRESS, Column, Table

_ROLE = Column("role", "string", "", "what the head was tested for, such as induction; the names are in `atlas.ROLES`")
_SCORE = Column("score", "float64", "", "the role's score, mean over samples; 1 is all of what the head can give to it")
_LOW = Column("low", "float64", "", "lower end of the score's 95 % interval over samples")
_HIGH = Column("high", "float64", "", "upper end of the score's 95 % interval over samples")
_NULL = Column("null", "float64", "", "the same score with its targets shuffled: what a head without the role gets here")
_NAMED = Column("named", "bool", "", "true where the score is beyond its null by the rule printed with the role")
_STEP = Column("step", "int64", "steps", "optimizer steps taken by the checkpoint; its place in the series where unknown")
_EXAMPLE = Column("example", "string", "", "id of the example: a hash of its unpadded token ids and label mask")

ATLAS = (
    Table("heads", ("address",), "one row per head: its strongest role, or unresolved", (
        ADDRESS,
        Column("layer", "int32", "", "layer (from 0)"),
        Column("head", "int32", "", "head of its layer (from 0)"),
        Column("role", "string", "", "the role with the most evidence among those that are beyond their null, else "
               "unresolved; the first-token sink, where heads rest, only if there is no other"),
        Column("roles", "list<string>", "", "all roles that are beyond their null, in the same order"),
        _SCORE, _LOW, _HIGH, _NULL,
        Column("evidence", "float64", "", "how far the score lies between its null and the best possible: "
               "(score - null) / (1 - null), 0 for an unresolved head"),
        Column("entropy_nats", "float64", "nats", "mean entropy of the head's attention on the reference text"),
        Column("distance_tokens", "float64", "tokens", "mean distance back of what it attends to, the first token left out"),
        Column("sink", "float64", "", "mean attention on the first token of the reference text"),
        Column("cluster", "int32", "", "group of heads with alike patterns; null where patterns were not grouped"),
        Column("template_share", "float64", "", "share of its attention that stays when the content changes and the template "
               "does not: a false attention path where it is high"),
        Column("content_share", "float64", "", "share of its attention that stays when the template changes and the "
               "content does not"),
        Column("template_null", "float64", "", "the same share between positions that do not belong together"),
        Column("content_null", "float64", "", "the same for `content_share`"),
    )),
    Table("scores", ("address", "role", "detail"), "every role of every head, with null and interval", (
        ADDRESS, _ROLE,
        Column("detail", "string", "", "what the role leaves open: an offset, a relation with its direction; else empty"),
        _SCORE, _LOW, _HIGH, _NULL,
        Column("p", "float64", "", "probability of so much beyond the null by chance, corrected for all heads tested (Holm)"),
        Column("samples", "int32", "", "independent texts the score was taken on"),
        _NAMED,
    )),
    Table("checks", ("role",), "what a role's heads are worth: removed together, against random heads of the same layers", (
        _ROLE,
        Column("heads", "list<string>", "", "the heads that were replaced by their mean output"),
        Column("task", "string", "", "the loss that the role should carry"),
        Column("loss_nats", "float64", "nats/token", "that loss with the whole model"),
        Column("ablated_nats", "float64", "nats/token", "with the role's heads replaced"),
        Column("random_nats", "float64", "nats/token", "with as many random heads of the same layers replaced, mean over draws"),
        Column("random_low", "float64", "nats/token", "the smallest of these draws"),
        Column("random_high", "float64", "nats/token", "the largest of these draws"),
        Column("draws", "int32", "", "draws of random heads; fewer than asked for where the layers have no more choices"),
        Column("holds", "bool", "", "true where the role's heads cost more than every draw"),
    )),
    Table("weights", ("address",), "what the weights say without any text", (
        ADDRESS,
        Column("ov_copying", "float64", "", "copying by the OV circuit: (sum of the eigenvalues of W_E W_V W_O W_U) / (sum of "
               "their sizes), the mean logit taken off; 1 raises what it reads, -1 lowers it"),
        Column("ov_copying_null", "float64", "", "95th percentile of the absolute score of heads whose W_V W_O has the same "
               "singular values and random directions, between the same embeddings; trained heads share directions, so most "
               "are beyond it"),
        Column("qk_matching", "float64", "", "the same ratio for the QK circuit without rotation, each query's mean taken off: 1 "
               "attends to its like, -1 to its unlike"),
        Column("qk_matching_null", "float64", "", "as ov_copying_null, for qk_matching"),
        Column("ov_rank", "float64", "", "effective rank of W_V W_O: exp of the entropy of its squared singular values' shares"),
        Column("qk_rank", "float64", "", "effective rank of W_Q W_K, the same way"),
        Column("ov_l2", "float64", "", "length (Frobenius) of W_V W_O"),
        Column("qk_l2", "float64", "", "length (Frobenius) of W_Q W_K, scaled as scores are"),
        Column("profile_offset", "int32", "tokens", "distance back that the mean query and mean key prefer under rotation, or by "
               "learnt positions; null where positions act in neither way"),
        Column("profile", "list<float64>", "nats", "score of the mean query with the mean key by distance back (0, 1, 2, ...), "
               "its mean taken off; empty where `profile_offset` is null"),
    )),
    Table("reads", ("address", "circuit", "rank"), "what a head reads and writes, as tokens, from its weights", (
        ADDRESS,
        Column("circuit", "string", "", "ov: token read and the token it raises most; ov_down: lowers most; qk: token looking "
               "and token looked at"),
        Column("rank", "int32", "", "place by strength (from 0)"),
        Column("source", "string", "", "the token read (ov) or looking (qk), as letters"),
        Column("token", "string", "", "the token raised or lowered (ov) or looked at (qk), as letters"),
        Column("value", "float64", "", "the entry of the circuit's matrix, over embeddings brought to the first norm's scale, "
               "less its mean over tokens read (ov) or looked at (qk)"),
    )),
    Table("composition", ("reader", "writer", "side"), "which head's output enters which later head's circuit, from weights: "
          "the writers of the largest excess for every reader and side", (
        Column("reader", "string", "", "the later head"),
        Column("writer", "string", "", "the earlier head"),
        Column("side", "string", "", "q, k or v: where the writer's output enters"),
        Column("score", "float64", "", "|M W| / (|M| |W|) by Frobenius lengths, M the reader's circuit, W the writer's W_V W_O"),
        Column("null", "float64", "", "the same for random directions of the same singular values: its mean, as worked out"),
        Column("excess", "float64", "", "score less null, in standard deviations of the null; trained heads share directions, "
               "so most pairs are beyond it"),
        Column("apart", "float64", "", "score less the median over all earlier heads, in robust standard deviations over them: "
               "how far this writer stands out; null under eight of them"),
    )),
    Table("clusters", ("cluster",), "heads grouped by their patterns over a reference text", (
        Column("cluster", "int32", "", "number of the group, the largest first"),
        Column("name", "string", "", "the role most over-represented in it, or unresolved"),
        Column("heads", "int32", "", "how many heads"),
        Column("stability", "float64", "", "mean adjusted Jaccard overlap of the group with its best match when the text is "
               "resampled: 1 is the same group every time"),
        Column("features", "string", "", "JSON: mean of each feature of the pattern over its heads"),
    )),
    Table("levels", ("level",), "how each level of the architecture writes knowledge into weights", (
        Column("level", "string", "", "embed, positions, q, k, v, o, gate, up, down, norm, unembed or other"),
        Column("parameters", "int64", "", "numbers stored at this level, all layers together; 0 where they are another's"),
        Column("share", "float64", "", "of all parameters of the model"),
        Column("weight_l2", "float64", "", "length of its weights, all layers together"),
        Column("effective_rank", "float64", "", "exp of the entropy of the squared singular values' shares, mean over layers; "
               "null for vectors and for matrices of more than 2048 rows and columns"),
        Column("full_rank", "float64", "", "the largest that it could be, mean over layers"),
        Column("top_share", "float64", "", "share of the squared length in the largest singular value, mean over layers"),
        Column("moved", "float64", "", "length of the difference to the other checkpoint, over weight_l2; null without one"),
        Column("moved_rank", "float64", "", "effective rank of the difference, mean over layers; null without one"),
        Column("shared_with", "string", "", "the level whose matrix this one is too, where embeddings are tied; else null"),
    )),
    Table("patterns", ("address", "text"), "a head's attention on a reference text", (
        ADDRESS,
        Column("text", "int32", "", "which reference text (from 0); its tokens are in `about`"),
        Column("triangle", "string", "", "base64 of the deflated lower triangle, row by row, one byte each: 255 times attention"),
    )),
    Table("places", ("address", "tensor", "role"), "the bytes that hold a head", (
        ADDRESS,
        Column("tensor", "string", "", "name of the tensor in the file"),
        Column("role", "string", "", "q, k, v or o (sink where a head has one); with .bias where it is one; "
               "a fused tensor holds several"),
        Column("file", "string", "", "name of the file, relative to the subject's folder"),
        Column("dtype", "string", "", "type of the numbers as stored"),
        Column("shape", "list<int64>", "", "shape of the whole tensor"),
        Column("rows", "list<int64>", "", "first row and the row after the last; empty where all"),
        Column("columns", "list<int64>", "", "first column and the column after the last; empty where all"),
        Column("start", "int64", "bytes", "first byte of the slice in the file"),
        Column("stop", "int64", "bytes", "the byte after its last; between them lie only its own bytes where `stride` is null"),
        Column("run_bytes", "int64", "bytes", "length of each contiguous run"),
        Column("stride", "int64", "bytes", "distance from the start of one run to the next; null where there is one run"),
        Column("runs", "int64", "", "how many contiguous runs"),
        Column("shared_with", "list<string>", "", "heads that use the same bytes (under grouped-query attention)"),
    )),
    Table("history", ("step", "address", "role", "detail"), "every role of every head over a series of checkpoints", (
        _STEP, ADDRESS, _ROLE,
        Column("detail", "string", "", "as in `scores`"),
        _SCORE, _LOW, _HIGH, _NULL, _NAMED,
    )),
    Table("losses", ("step", "task"), "the losses beside the history", (
        _STEP,
        Column("task", "string", "", "what was predicted: text (the reference text), repeat (the second copy of random tokens), "
               "first (their first copy)"),
        Column("loss_nats", "float64", "nats/token", "mean loss per token at that checkpoint"),
    )),
    Table("events", ("role", "address", "step"), "births, deaths and hand-overs of roles", (
        _ROLE, ADDRESS,
        Column("event", "string", "", "birth: first checkpoint beyond the null for good; death: first one no longer; handover: "
               "the role's score fell here while it rose in another head"),
        _STEP,
        Column("after_step", "int64", "steps", "the checkpoint before it: the event lies between the two"),
        Column("low_step", "int64", "steps", "lower end of the 95 % interval of the step, by resampling texts"),
        Column("high_step", "int64", "steps", "upper end of it"),
        Column("other", "string", "", "the head that took over; empty for other events"),
    )),
    Table("teachers", ("address", "example"), "the training texts that wrote a head, ranked by credit to its role", (
        ADDRESS, _EXAMPLE,
        Column("rank", "int32", "", "place by credit, from 0"),
        Column("credit_nats", "float64", "nats/token", "fall of the head's role loss that the example's part of the steps "
               "predicts, through this head's weights alone, summed over the window"),
        Column("movement", "float64", "parameter length", "sum of |shift| of the example in this head over the window"),
        Column("null_low", "float64", "nats/token", "5th percentile of its credit through the other heads of the layer"),
        Column("null_high", "float64", "nats/token", "95th percentile of it"),
        Column("visits", "int32", "", "visits of the example in the window"),
        Column("group", "string", "", "the example's group"),
        Column("preview", "string", "", "the first characters of the text"),
    )),
    Table("teacher_tokens", ("address", "example", "position"), "which tokens of the teachers wrote the head", (
        ADDRESS, _EXAMPLE,
        Column("position", "int32", "", "place in the example (from 0)"),
        Column("token", "string", "", "the token as letters"),
        Column("shift", "float64", "parameter length", "signed length written into this head's slices through this token"),
    )),
)
