import torch

vocab = ["u", "n", "d", "o", "un", "do", "und", "undo"]
torch.manual_seed(1)
step = torch.randn(len(vocab) + 1, len(vocab)).mul(2).log_softmax(-1)  # ln p(token | token before); last row: the start
found = []
def cut(rest, before=-1, log_p=0.0, way=()):
    if not rest:
        found.append(log_p)
        print(f"{'|'.join(way):8} ln p {log_p:6.2f}  next {vocab[step[before].argmax()]}")
    for i, token in enumerate(vocab):
        if rest.startswith(token):
            cut(rest[len(token):], i, log_p + float(step[before, i]), (*way, token))
cut("undo")
print(f"the word, over all {len(found)} ways: ln p {torch.tensor(found).logsumexp(0):.2f}")
