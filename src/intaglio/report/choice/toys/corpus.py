import torch

words = "the cat sat on the cat mat and the cat".split()
names = sorted(set(words))                                     # and cat mat on sat the
ids = [names.index(w) for w in words]
for n in (2, 1, 0):                                            # ever shorter endings
    ending = ids[len(ids) - n :]
    after = [ids[i + n] for i in range(len(ids) - n) if ids[i : i + n] == ending]
    p_n = torch.bincount(torch.tensor(after), minlength=6) / len(after)
    p = torch.tensor([0.1, 0.0, 0.2, 0.0, 0.6, 0.1])           # what a model says
    shared = torch.minimum(p, p_n).sum()
    print(f"last {n}: {len(after)} places, sat {p_n[4]:.2f}, shared mass {shared:.2f}")
